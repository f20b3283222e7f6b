package storaged

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nasfleet/nasfleet/internal/exec/proc"
	"github.com/nasfleet/nasfleet/messages"
)

// defaultQemuImg is the program that examines a qcow2 image.
const defaultQemuImg = "qemu-img"

// Exit statuses of qemu-img check, from its manual page: anything else means that the check was
// not carried out.
const (
	checkCorruptions = 2
	checkLeaks       = 3
)

// Report is what qemu-img check found in an image.
type Report struct {
	// Corruptions damage content.
	Corruptions int64 `json:"corruptions"`
	// Leaks waste space only.
	Leaks int64 `json:"leaks"`
	// Errors are clusters that could not be examined.
	Errors             int64 `json:"check-errors"`
	TotalClusters      int64 `json:"total-clusters"`
	AllocatedClusters  int64 `json:"allocated-clusters"`
	CompressedClusters int64 `json:"compressed-clusters"`
	// EndOffset is where the image's data end in the file, in bytes.
	EndOffset int64 `json:"image-end-offset"`
}

// Check examines the qcow2 structure of a backup that OpenBackup has exported on socket; qemuImg
// "" means qemu-img in PATH. Corruptions, and clusters that cannot be read, are an error of
// CodeVerifyFailed beside the report; leaks are not. It does not look at the content: a
// flipped bit in the data is not found here.
func Check(ctx context.Context, qemuImg, socket, export string) (Report, error) {
	if qemuImg == "" {
		qemuImg = defaultQemuImg
	}
	// The name is JSON, so that no character of it is an option.
	image, err := json.Marshal(object{
		"driver": FormatQcow2, "backing": nil,
		"file": object{
			"driver": "nbd", "export": export + ContainerSuffix,
			"server": object{"type": "unix", "path": socket},
		},
	})
	if err != nil {
		return Report{}, messages.Errorf(messages.CodeInternal, "%w", err)
	}
	ctx, cancel := within(ctx, checkTimeout)
	defer cancel()
	out, err := proc.Run(ctx, proc.Spec{Path: qemuImg, Args: []string{"check", "--output", "json", "json:" + string(image)}})
	if ctx.Err() != nil {
		return Report{}, context.Cause(ctx)
	}
	status := proc.ExitCode(err)
	switch {
	case err != nil && status < 0:
		// It did not run, or was killed.
		return Report{}, messages.Errorf(messages.CodeStorageDaemonFailed, "check %q: %w", export, err)
	case err != nil && status != checkCorruptions && status != checkLeaks:
		return Report{}, messages.Errorf(messages.CodeVerifyFailed, "check %q: %w", export, err)
	}
	r, err := parseReport(out)
	if err != nil {
		return Report{}, messages.Errorf(messages.CodeVerifyFailed, "check %q: %w", export, err)
	}
	if r.Corruptions > 0 || r.Errors > 0 || status == checkCorruptions {
		return r, messages.Errorf(messages.CodeVerifyFailed, "check %q: %d corruptions, %d errors", export, r.Corruptions, r.Errors)
	}
	return r, nil
}

// parseReport reads the answer of qemu-img check.
func parseReport(out []byte) (Report, error) {
	var raw struct {
		Report
		Format string `json:"format"`
		// A pointer tells an answer from any other JSON.
		CheckErrors *int64 `json:"check-errors"`
	}
	if err := json.Unmarshal(out, &raw); err != nil {
		return Report{}, fmt.Errorf("the report of qemu-img: %w", err)
	}
	if raw.CheckErrors == nil || raw.Format != FormatQcow2 {
		return Report{}, errors.New("the report of qemu-img is not one of a qcow2 image")
	}
	r := raw.Report
	r.Errors = *raw.CheckErrors
	if min(r.Corruptions, r.Leaks, r.Errors, r.TotalClusters, r.AllocatedClusters, r.CompressedClusters, r.EndOffset) < 0 {
		return Report{}, errors.New("the report of qemu-img has a negative count")
	}
	return r, nil
}

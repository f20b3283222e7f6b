package storaged

import (
	"context"
	"fmt"

	"github.com/nasfleet/nasfleet/messages"
)

// LinkExport returns the name of the export of a link's own content, of a chain exported as export.
func LinkExport(export string, link int) string { return fmt.Sprintf("%s.link%d", export, link) }

// OpenChain exports for reading, as export, what the topmost of a chain of backups shows on those
// below it, and as LinkExport(export, i) what each holds itself, as OpenBackup does. The newest
// comes first, a full one last. Which file lies on which is said here alone: a backup that refers
// to any file is refused, as by OpenBackup.
func (d *Daemon) OpenChain(ctx context.Context, export string, links []Backup) error {
	// Of several files, the one that cannot be opened.
	var at Backup
	err := d.build(ctx, export, func(ctx context.Context, g *graph) error {
		var below any // null: nothing
		for i := len(links) - 1; i >= 0; i-- {
			at = links[i]
			if err := onFile(ctx, func() error { return checkBackup(at) }); err != nil {
				return err
			}
			base, own, err := g.openBackup(ctx, at)
			if err != nil {
				return err
			}
			top, err := g.node(ctx, object{"driver": FormatQcow2, "file": base, "backing": below, "read-only": true})
			if err != nil {
				return err
			}
			if err := g.exportDepths(ctx, LinkExport(export, i), own); err != nil {
				return err
			}
			below = top
		}
		top, ok := below.(string)
		if !ok {
			return messages.Errorf(messages.CodeInternal, "a chain of no backups")
		}
		return g.export(ctx, export, top, false)
	})
	return classify(ctx, opening, fmt.Sprintf("open backup %q", at.Path), err)
}

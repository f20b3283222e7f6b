package bench

// contestant is a way to back the guest up.
type contestant struct{ id, name string }

// The contestants: ours, and the peers.
const (
	idPlain       = "plain"
	idZstd        = "zstd"
	idLUKS        = "zstd+luks"
	idFull        = "zstd+luks+verify"
	idScript      = "script"
	idVirt        = "virtnbdbackup"
	idVirtLZ4     = "virtnbdbackup -z"
	idNBDCopy     = "nbdcopy"
	idNBDCopyZstd = "nbdcopy zstd"
)

// contestants are all of them, in the order of the report.
func contestants() []contestant {
	return []contestant{
		{idPlain, "nasfleet, plain"},
		{idVirt, "virtnbdbackup"},
		{idNBDCopy, "nbdcopy into the same graph, plain"},
		{idZstd, "nasfleet, compressed"},
		{idVirtLZ4, "virtnbdbackup -z"},
		{idNBDCopyZstd, "nbdcopy into the same graph, compressed"},
		{idFull, "nasfleet, compressed, encrypted, verified"},
		{idLUKS, "nasfleet, compressed, encrypted"},
		{idScript, "the script: push, convert -c, convert to LUKS, check"},
	}
}

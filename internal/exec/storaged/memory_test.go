package storaged

import (
	"path/filepath"
	"testing"

	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestPassphraseIsWiped looks for a passphrase in all the memory of the process, after containers were made, opened and
// given other keys with it.
func TestPassphraseIsWiped(t *testing.T) {
	d, _ := startDaemon(t, quick)
	text := []byte("correct-horse-47<q\"battery")
	s := lab.HideSecret(text)
	use := func() {
		passphrase := s.Reveal()
		defer clear(passphrase)
		path := filepath.Join(t.TempDir(), "vda.luks")
		mustDo(t, d.CreateBackup(t.Context(), "vda", NewBackup{Path: path, Size: 1 << 20, Passphrase: passphrase}))
		mustDo(t, d.CloseExport(t.Context(), "vda"))
		mustDo(t, d.OpenBackup(t.Context(), "vda", Backup{path, passphrase}))
		mustDo(t, d.CloseExport(t.Context(), "vda"))
		slots, err := d.AddKeys(t.Context(), Backup{path, passphrase}, []byte("another"))
		mustDo(t, err)
		mustDo(t, d.KeepKeys(t.Context(), Backup{path, []byte("another")}, slots))
		if opens, err := d.Opens(t.Context(), Backup{path, passphrase}); opens || err != nil {
			t.Errorf("it still opens: %v", err)
		}
	}
	use()
	if n := s.InMemory(t); n > 0 {
		t.Errorf("it is still %d times in memory", n)
	}
	line, err := encodeCommand(7, "object-add", secretObject{"secret1", []byte("a\"b")})
	if want := `{"execute":"object-add","arguments":{"qom-type":"secret","id":"secret1","format":"base64","data":"YSJi"},"id":7}`; err != nil || string(line) != want || cap(line) != len(line) {
		t.Errorf("got %s, %v", line, err)
	}
}

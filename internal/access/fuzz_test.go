package access

import (
	"testing"

	"github.com/nasfleet/nasfleet/messages"
)

// Whatever the file of a host holds, it is refused or is a host that can be written into a
// server's configuration.
func FuzzDecodeHost(f *testing.F) {
	f.Add([]byte(`{"zone":"z1","host":"h1","seal_key":"XDEET6YH5IBO4JTOWAHO3RYNG4TX23UFJWG7WDIA2PBIKX2PTPDEAB6P","user":"UDDPN3VC5JKQMQGW7Z3RMKXHH5MEAFKZOS6IEYSAXVBGRQTVYCTTFUZR"}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"zone":"z1\n","host":"}"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := decodeHost(data)
		if err != nil {
			return
		}
		if messages.CheckLabel("zone", h.Zone) != nil || messages.CheckLabel("host", h.Host) != nil {
			t.Errorf("%+v", h)
		}
	})
}

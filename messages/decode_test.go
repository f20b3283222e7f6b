package messages_test

import (
	"encoding/json"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	m "github.com/nasfleet/nasfleet/messages"
)

const (
	jobID    = "01K5XZ8M4RA0T5B7C9D1E3F5G7"
	backupID = "01K5XW1Q2RA0T5B7C9D1E3F5G7"
)

type object = map[string]any

var issuedAt = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)

func header(t m.Type) m.Header {
	return m.Header{Version: 1, Type: t, JobID: jobID, IssuedAt: issuedAt}
}

func repo() m.Repository {
	return m.Repository{Type: "nfs", Address: "nas:/backup", MountOptions: "vers=4.2,hard"}
}

func backupRef() m.BackupRef {
	return m.BackupRef{ID: backupID, VM: "web-1", BackupPath: "daily/a", Repository: repo()}
}

func validTake() *m.TakeBackup {
	return &m.TakeBackup{Header: header(m.TypeTake), VM: "web-1", Repository: repo()}
}

// valid holds one command of each type, with every field set that may be set together.
func valid() map[m.Type]m.Command {
	take := validTake()
	take.Attempts, take.Replays, take.BackupPath, take.Mode, take.Quiesce = 5, backupID, "daily/a", m.ModeAuto, m.QuiesceRequired
	take.Details = m.Details{Compression: true, CompressionType: m.Zlib, Encryption: true, Passphrase: sealed, BandwidthLimit: 100, IntegrityCheck: true,
		Revision: backupID, Recovery: sealed, RecoveryRevision: jobID}
	return map[m.Type]m.Command{
		m.TypeTake: take,
		m.TypeRestore: &m.RestoreBackup{Header: header(m.TypeRestore), Backup: backupRef(), Disks: []string{"vda"}, ToDir: "/restore",
			Format: "raw", Define: true, Force: true, Details: m.Details{Passphrase: sealed, BandwidthLimit: 1}},
		m.TypeVerify: &m.VerifyBackup{Header: header(m.TypeVerify), Backup: backupRef(), Details: m.Details{Passphrase: sealed, Revision: backupID}},
		m.TypeDelete: &m.DeleteBackup{Header: header(m.TypeDelete), Backup: backupRef()},
		m.TypeRekey: &m.RekeyBackup{Header: header(m.TypeRekey), Backup: backupRef(), OldPassphrase: sealed, OldRevision: jobID,
			Details: m.Details{Passphrase: sealed, Revision: backupID, Recovery: sealed, RecoveryRevision: jobID}},
		m.TypeConsolidate: &m.ConsolidateBackup{Header: header(m.TypeConsolidate), Backup: backupRef(), ChainPassphrase: sealed, ChainRevision: backupID, Details: take.Details},
		m.TypeList:        &m.ListBackups{Header: header(m.TypeList), BackupPath: "daily/a", Repository: repo(), VM: "web-1"},
	}
}

// edit returns the JSON of the type's valid command after a change.
func edit(t *testing.T, typ m.Type, change func(object)) string {
	t.Helper()
	data, err := m.Encode(valid()[typ])
	if err != nil {
		t.Fatal(err)
	}
	var o object
	if err := json.Unmarshal(data, &o); err != nil {
		t.Fatal(err)
	}
	change(o)
	if data, err = json.Marshal(o); err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func set(key string, value any) func(object) { return func(o object) { o[key] = value } }

func TestDecodeEachCommand(t *testing.T) {
	for typ, want := range valid() {
		t.Run(string(typ), func(t *testing.T) {
			data, err := m.Encode(want)
			if err != nil {
				t.Fatal(err)
			}
			got, h, err := m.Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(want.Head(), h); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestDecodeMissing takes each required field away, from the top and from within, or makes it null.
func TestDecodeMissing(t *testing.T) {
	top := []string{"version", "type", "job_id", "issued_at"}
	missing := map[m.Type][]string{
		m.TypeTake:        append(top, "vm", "repository", "repository.type", "repository.address"),
		m.TypeRestore:     append(top, "backup", "backup.id", "backup.vm", "backup.repository", "backup.repository.type", "backup.repository.address", "to_dir"),
		m.TypeVerify:      append(top, "backup", "backup.id", "backup.vm", "backup.repository", "backup.repository.type", "backup.repository.address"),
		m.TypeDelete:      append(top, "backup", "backup.id", "backup.vm", "backup.repository", "backup.repository.type", "backup.repository.address"),
		m.TypeRekey:       append(top, "backup", "backup.id", "backup.vm", "backup.repository", "backup.repository.type", "backup.repository.address"),
		m.TypeConsolidate: append(top, "backup", "backup.id", "backup.vm", "backup.repository", "backup.repository.type", "backup.repository.address"),
		m.TypeList:        append(top, "repository", "repository.type", "repository.address"),
	}
	for typ, fields := range missing {
		for _, field := range fields {
			for name, without := range map[string]func(object, string){
				"missing": func(o object, key string) { delete(o, key) },
				"null":    func(o object, key string) { o[key] = nil },
			} {
				t.Run(string(typ)+"/"+field+"/"+name, func(t *testing.T) {
					data := edit(t, typ, func(o object) {
						path := strings.Split(field, ".")
						for _, key := range path[:len(path)-1] {
							o = o[key].(object)
						}
						without(o, path[len(path)-1])
					})
					_, h, err := m.Decode([]byte(data))
					refused(t, err, m.CodeInvalidMessage, "")
					if field != "job_id" && h.JobID != jobID {
						t.Errorf("the refusal cannot name the job: %+v", h)
					}
				})
			}
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	const deep = 100_000
	take, restore, verify, list := m.TypeTake, m.TypeRestore, m.TypeVerify, m.TypeList
	tests := []struct {
		name, in string
		code     m.Code
		says     string
	}{
		{"empty", ``, m.CodeInvalidMessage, ""},
		{"not JSON", `TakeBackup web-1`, m.CodeInvalidMessage, "not a JSON command"},
		{"null", `null`, m.CodeInvalidMessage, "type"},
		{"list", `[]`, m.CodeInvalidMessage, ""},
		{"string", `"TakeBackup"`, m.CodeInvalidMessage, ""},
		{"empty object", `{}`, m.CodeInvalidMessage, "type"},
		{"cut off", strings.TrimSuffix(edit(t, take, set("vm", "a")), "}"), m.CodeInvalidMessage, ""},
		{"data after it", edit(t, take, set("vm", "a")) + `{}`, m.CodeInvalidMessage, ""},
		{"byte order mark", "\ufeff" + edit(t, take, set("vm", "a")), m.CodeInvalidMessage, ""},
		{"deep list", strings.Repeat("[", deep) + strings.Repeat("]", deep), m.CodeInvalidMessage, "depth"},
		{"deep field", edit(t, take, set("vm", json.RawMessage(strings.Repeat(`[`, 9000)+strings.Repeat(`]`, 9000)))), m.CodeInvalidMessage, "vm"},

		{"too new", edit(t, take, set("version", 2)), m.CodeUnsupportedVersion, "version 2"},
		{"too new, with what it brings", edit(t, take, func(o object) { o["version"], o["type"], o["clones"] = 2, "CloneVM", 3 }), m.CodeUnsupportedVersion, "version 2"},
		{"too new, another header", `{"version":2,"job_id":{"ulid":1},"issued_at":7}`, m.CodeUnsupportedVersion, "version 2"},
		{"version 0", edit(t, take, set("version", 0)), m.CodeInvalidMessage, "version"},
		{"version -1", edit(t, take, set("version", -1)), m.CodeInvalidMessage, "version"},
		{"version in a string", edit(t, take, set("version", "1")), m.CodeInvalidMessage, "version"},
		{"version 1.5", edit(t, take, set("version", 1.5)), m.CodeInvalidMessage, "version"},
		{"unknown type", edit(t, take, set("type", "TakeBakcup")), m.CodeInvalidMessage, `"TakeBakcup"`},
		{"type in another case", edit(t, take, set("type", "takebackup")), m.CodeInvalidMessage, "type"},
		{"another type's fields", edit(t, take, set("type", "DeleteBackup")), m.CodeInvalidMessage, "unknown field"},

		{"job id too short", edit(t, take, set("job_id", "01K5")), m.CodeInvalidMessage, "job_id"},
		{"job id in lower case", edit(t, take, set("job_id", strings.ToLower(jobID))), m.CodeInvalidMessage, "job_id"},
		{"job id too large", edit(t, take, set("job_id", "8"+jobID[1:])), m.CodeInvalidMessage, "job_id"},
		{"job id with a letter that is none", edit(t, take, set("job_id", jobID[:25]+"U")), m.CodeInvalidMessage, "job_id"},
		{"job id that ends its token", edit(t, take, set("job_id", jobID[:24]+".>")), m.CodeInvalidMessage, "job_id"},
		{"issued_at a number", edit(t, take, set("issued_at", 1770091506)), m.CodeInvalidMessage, ""},
		{"issued_at no date", edit(t, take, set("issued_at", "yesterday")), m.CodeInvalidMessage, "yesterday"},
		{"issued_at zero", edit(t, take, set("issued_at", "0001-01-01T00:00:00Z")), m.CodeInvalidMessage, "issued_at"},
		{"attempts -1", edit(t, take, set("attempts", -1)), m.CodeInvalidMessage, "attempts"},
		{"replays no ULID", edit(t, take, set("replays", "x.y.>")), m.CodeInvalidMessage, "replays"},
		{"replays no string", edit(t, take, set("replays", 7)), m.CodeInvalidMessage, "replays"},
		{"replays itself", edit(t, take, set("replays", jobID)), m.CodeInvalidMessage, "the job itself"},
		{"attempts 101", edit(t, take, set("attempts", 101)), m.CodeInvalidMessage, "attempts"},

		{"vm and images", edit(t, take, set("images", []string{"/a"})), m.CodeInvalidMessage, "vm and images"},
		{"vm a number", edit(t, take, set("vm", 7)), m.CodeInvalidMessage, "vm"},
		{"vm that leaves its folder", edit(t, take, set("vm", "../x")), m.CodeInvalidMessage, "vm"},
		{"mode unknown", edit(t, take, set("mode", "differential")), m.CodeInvalidMessage, "differential"},
		{"quiesce unknown", edit(t, take, set("quiesce", "maybe")), m.CodeInvalidMessage, "maybe"},
		{"quiesce a number", edit(t, take, set("quiesce", 1)), m.CodeInvalidMessage, ""},
		{"backup_path absolute", edit(t, take, set("backup_path", "/etc")), m.CodeInvalidMessage, "backup_path"},
		{"backup_path that leaves", edit(t, take, set("backup_path", "a/../../etc")), m.CodeInvalidMessage, "backup_path"},
		{"backup_path of a page", edit(t, take, set("backup_path", strings.Repeat("a/", 2048)+"a")), m.CodeInvalidMessage, "backup_path"},
		{"unknown field", edit(t, take, set("compress", "true")), m.CodeInvalidMessage, `"compress"`},
		{"detail outside of details", edit(t, take, set("encryption", "true")), m.CodeInvalidMessage, `"encryption"`},
		{"unknown detail", edit(t, take, set("details", object{"encrytpion": "true"})), m.CodeUnknownDetail, `"encrytpion"`},
		{"details a list", edit(t, take, set("details", []string{})), m.CodeInvalidDetail, "details"},

		{"repository with an unknown field", edit(t, take, set("repository", object{"type": "nfs", "address": "a:/b", "options": "ro"})), m.CodeInvalidMessage, `"options"`},
		{"repository a string", edit(t, take, set("repository", "nas:/backup")), m.CodeInvalidMessage, "repository"},
		{"repository address an option", edit(t, take, set("repository", object{"type": "nfs", "address": "--bind"})), m.CodeInvalidMessage, "--bind"},
		{"repository type an option", edit(t, take, set("repository", object{"type": "-a", "address": "a:/b"})), m.CodeInvalidMessage, "-a"},
		{"mount options over two lines", edit(t, take, set("repository", object{"type": "nfs", "address": "a:/b", "mount_options": "ro\nrw"})), m.CodeInvalidMessage, `ro\nrw`},
		{"folder with mount options", edit(t, take, set("repository", object{"type": "dir", "address": "/b", "mount_options": "ro"})), m.CodeInvalidMessage, "mount_options"},
		{"relative folder", edit(t, take, set("repository", object{"type": "dir", "address": "b"})), m.CodeInvalidMessage, "absolute"},
		{"folder that is not clean", edit(t, take, set("repository", object{"type": "dir", "address": "/b/../c"})), m.CodeInvalidMessage, "absolute"},
		{"address of a page", edit(t, take, set("repository", object{"type": "nfs", "address": "a:/" + strings.Repeat("b", 4096)})), m.CodeInvalidMessage, "4095"},

		{"restore nowhere", edit(t, restore, set("to_dir", "")), m.CodeInvalidMessage, "to_dir, to_vm and to_rbd"},
		{"restore to two places", edit(t, restore, set("to_vm", "web-1")), m.CodeInvalidMessage, "to_dir, to_vm and to_rbd"},
		{"restore to a relative folder", edit(t, restore, set("to_dir", "r")), m.CodeInvalidMessage, "to_dir"},
		{"restore over a VM, defined", edit(t, restore, func(o object) { delete(o, "to_dir"); delete(o, "format"); o["to_vm"] = "web-1" }), m.CodeInvalidMessage, "define"},
		{"restore over a VM, a format", edit(t, restore, func(o object) { delete(o, "to_dir"); delete(o, "define"); o["to_vm"] = "web-1" }), m.CodeInvalidMessage, "format"},
		{"restore over a bad name", edit(t, restore, func(o object) { delete(o, "to_dir"); o["to_vm"] = "a/b" }), m.CodeInvalidMessage, "vm"},
		{"restore to no image", edit(t, restore, toRBD("vda", "p")), m.CodeInvalidMessage, `"p"`},
		{"restore to a namespace", edit(t, restore, toRBD("vda", "p/n/i")), m.CodeInvalidMessage, "pool/image"},
		{"restore to two lines", edit(t, restore, toRBD("vda", "p/i\nj")), m.CodeInvalidMessage, "pool/image"},
		{"restore a bad disk to an image", edit(t, restore, toRBD("../x", "p/i")), m.CodeInvalidMessage, "../x"},
		{"restore two disks to one image", edit(t, restore, toRBD("vda", "p/i", "vdb", "p/i")), m.CodeInvalidMessage, "vdb"},
		{"restore to an image and a VM", edit(t, restore, func(o object) { toRBD("vda", "p/i")(o); o["to_vm"] = "a" }), m.CodeInvalidMessage, "exactly one"},
		{"restore to an image, disks", edit(t, restore, func(o object) { toRBD("vda", "p/i")(o); o["disks"] = []string{"vda"} }), m.CodeInvalidMessage, "disks"},
		{"restore to an image, defined", edit(t, restore, func(o object) { toRBD("vda", "p/i")(o); o["define"] = true }), m.CodeInvalidMessage, "define"},
		{"restore as vmdk", edit(t, restore, set("format", "vmdk")), m.CodeInvalidMessage, "vmdk"},
		{"restore a disk that leaves", edit(t, restore, set("disks", []string{"vda", "../x"})), m.CodeInvalidMessage, "../x"},
		{"restore with compression", edit(t, restore, set("details", object{"compression": "true"})), m.CodeInvalidDetail, "compression does not"},
		{"restore with encryption", edit(t, restore, set("details", object{"encryption": "true", "encryption_passphrase": sealed})), m.CodeInvalidDetail, "encryption does not"},
		{"verify with a type", edit(t, verify, set("details", object{"compression_type": "zstd"})), m.CodeInvalidDetail, "compression_type does not"},
		{"verify with a check", edit(t, verify, set("details", object{"integrity_check": "true"})), m.CodeInvalidDetail, "integrity_check does not"},
		{"verify a bad id", edit(t, verify, set("backup", object{"id": "..", "vm": "a", "repository": object{"type": "dir", "address": "/b"}})), m.CodeInvalidMessage, "backup id"},
		{"list with details", edit(t, list, set("details", object{})), m.CodeInvalidMessage, `"details"`},
		{"list a bad name", edit(t, list, set("vm", ".")), m.CodeInvalidMessage, "vm"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd, _, err := m.Decode([]byte(tt.in))
			refused(t, err, tt.code, tt.says)
			if cmd != nil {
				t.Errorf("a command came with the error: %v", cmd)
			}
		})
	}
}

// TestDecodeExact: what encoding/json forgives is refused. Of two fields of one name the last
// would win; a field in another case would be taken for the one that is meant.
func TestDecodeExact(t *testing.T) {
	base := edit(t, m.TypeTake, func(object) {})
	with := func(more string) string { return strings.TrimSuffix(base, "}") + "," + more + "}" }
	tests := []struct{ name, in, says string }{
		{"details twice", with(`"details":{}`), `"details" is given twice`},
		{"vm twice", with(`"vm":"web-1"`), `"vm" is given twice`},
		{"escaped", with(`"\u0076m":"web-2"`), `"vm" is given twice`},
		{"type twice", with(`"type":"TakeBackup"`), `"type" is given twice`},
		{"another case", with(`"VM":"web-2"`), `"VM"`},
		{"another case alone", strings.Replace(base, `"details"`, `"Details"`, 1), `"Details"`},
		{"another case in the header", strings.Replace(base, `"job_id"`, `"Job_ID"`, 1), `"Job_ID"`},
		{"a letter that folds to another", strings.Replace(base, `"version"`, `"verſion"`, 1), "verſion"},
		{"within details", strings.Replace(base, `"encryption":"true"`, `"encryption":"true","encryption":"false"`, 1), `"encryption" is given twice`},
		{"within repository", strings.Replace(base, `"address"`, `"address":"nas:/other","address"`, 1), `"address" is given twice`},
		{"another case within repository", strings.Replace(base, `"address"`, `"ADDRESS"`, 1), `"ADDRESS"`},
		{"within an image", edit(t, m.TypeTake, func(o object) {
			delete(o, "vm")
			o["images"] = []any{"/a", json.RawMessage(`{"path":"/b","path":"/c","format":"raw"}`)}
		}), `"path" is given twice`},
		{"not UTF-8", strings.Replace(base, `"web-1"`, "\"web\xff\"", 1), "UTF-8"},
		{"half a surrogate pair", strings.Replace(base, `"web-1"`, `"web\ud800"`, 1), "vm"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.in == base {
				t.Fatal("the test changes nothing")
			}
			_, _, err := m.Decode([]byte(tt.in))
			refused(t, err, m.CodeInvalidMessage, tt.says)
		})
	}
	if _, _, err := m.Decode([]byte(base)); err != nil {
		t.Error(err)
	}
}

// TestLowerCaseFields: Decode relies on every field of a command being lower case.
func TestLowerCaseFields(t *testing.T) {
	var look func(reflect.Type)
	look = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice:
			look(typ.Elem())
		case reflect.Struct:
			if typ == reflect.TypeFor[time.Time]() || typ == reflect.TypeFor[m.Details]() {
				return
			}
			for f := range typ.Fields() {
				tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if !f.Anonymous && !regexp.MustCompile(`^[a-z_]+$`).MatchString(tag) {
					t.Errorf("%s.%s is %q in JSON", typ, f.Name, tag)
				}
				look(f.Type)
			}
		}
	}
	for _, cmd := range valid() {
		look(reflect.TypeOf(cmd))
	}
}

// TestHeaderOfTheRefused: the refusal can name the job and its type, and never by a text that could
// end a token of a subject or that is too large for an event.
func TestHeaderOfTheRefused(t *testing.T) {
	for _, tt := range []struct {
		name, in, id string
		typ          m.Type
	}{
		{"unknown type", edit(t, m.TypeTake, set("type", "X")), jobID, ""},
		{"huge type", edit(t, m.TypeTake, set("type", strings.Repeat("X", 1<<20))), jobID, ""},
		{"too new", edit(t, m.TypeTake, set("version", 9)), jobID, m.TypeTake},
		{"too new, of a new type", edit(t, m.TypeTake, func(o object) { o["version"], o["type"] = 9, "X" }), jobID, ""},
		{"bad version", edit(t, m.TypeTake, set("version", "1")), jobID, m.TypeTake},
		{"unknown detail", edit(t, m.TypeTake, set("details", object{"x": "y"})), jobID, m.TypeTake},
		{"hostile id", edit(t, m.TypeTake, set("job_id", "x.y.>")), "", m.TypeTake},
		{"header split", edit(t, m.TypeTake, set("job_id", "x\r\nNats-Rollup: all")), "", m.TypeTake},
		{"not JSON", "{", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, h, err := m.Decode([]byte(tt.in))
			if err == nil || h.JobID != tt.id || h.Type != tt.typ {
				t.Errorf("job id %q, type %.20q (%v)", h.JobID, h.Type, err)
			}
		})
	}
}

func TestImages(t *testing.T) {
	tests := []struct {
		name, in string
		want     []m.Image
		says     string // "" when it is taken
	}{
		{"path", `["/var/a b.img"]`, []m.Image{{Path: "/var/a b.img"}}, ""},
		{"object", `[{"path":"/a"}]`, []m.Image{{Path: "/a"}}, ""},
		{"format", `["/a",{"path":"/b","format":"qcow2"}]`, []m.Image{{Path: "/a"}, {Path: "/b", Format: "qcow2"}}, ""},
		{"relative", `["a.img"]`, nil, "image"},
		{"not clean", `["/a/../b"]`, nil, "image"},
		{"empty", `[""]`, nil, "image"},
		{"null", `[null]`, nil, "image"},
		{"newline", `["/a\nb"]`, nil, "image"},
		{"format vmdk", `[{"path":"/a","format":"vmdk"}]`, nil, "vmdk"},
		{"unknown field", `[{"path":"/a","fromat":"raw"}]`, nil, `"fromat"`},
		{"number", `[7]`, nil, ""},
		{"one, not a list", `"/a"`, nil, "images"},
		{"none", `[]`, nil, "vm and images"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := edit(t, m.TypeTake, func(o object) {
				delete(o, "vm")
				o["images"] = json.RawMessage(tt.in)
			})
			cmd, _, err := m.Decode([]byte(data))
			if tt.want == nil {
				refused(t, err, m.CodeInvalidMessage, tt.says)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, cmd.(*m.TakeBackup).Images); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestQuiesceForms(t *testing.T) {
	for in, want := range map[string]m.Quiesce{
		`true`: m.QuiesceBestEffort, `false`: m.QuiesceOff, `null`: m.QuiesceOff,
		`"off"`: m.QuiesceOff, `"best_effort"`: m.QuiesceBestEffort, `"required"`: m.QuiesceRequired,
	} {
		cmd, _, err := m.Decode([]byte(edit(t, m.TypeTake, set("quiesce", json.RawMessage(in)))))
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if got := cmd.(*m.TakeBackup).Quiesce; got != want {
			t.Errorf("%s is %q, want %q", in, got, want)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	badVersion, badYear, wrongType, badName := validTake(), validTake(), validTake(), validTake()
	badVersion.Version = 2
	badYear.IssuedAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) // RFC 3339 has four digits
	wrongType.Type = m.TypeDelete
	badName.VM = "web\xff" // JSON would carry another name
	for name, tt := range map[string]struct {
		cmd  m.Command
		code m.Code
		says string
	}{
		"zero":       {&m.DeleteBackup{}, m.CodeInvalidMessage, "version"},
		"too new":    {badVersion, m.CodeUnsupportedVersion, "version 2"},
		"year":       {badYear, m.CodeInvalidMessage, "year"},
		"wrong type": {wrongType, m.CodeInvalidMessage, "DeleteBackup"},
		"not UTF-8":  {badName, m.CodeInvalidMessage, "vm"},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := m.Encode(tt.cmd)
			refused(t, err, tt.code, tt.says)
			if data != nil {
				t.Errorf("data came with the error: %s", data)
			}
		})
	}
}

func TestTarget(t *testing.T) {
	images := func(paths ...string) *m.TakeBackup {
		c := &m.TakeBackup{}
		for _, p := range paths {
			c.Images = append(c.Images, m.Image{Path: p})
		}
		return c
	}
	for name, tt := range map[string]struct {
		cmd  m.Command
		want string
	}{
		"vm":            {validTake(), "web-1"},
		"image":         {images("/img/disk one.qcow2", "/img/b.raw"), "disk one"},
		"hidden image":  {images("/img/.qcow2"), "image"},
		"root":          {images("/"), "image"},
		"nothing":       {images(), ""},
		"restore":       {&m.RestoreBackup{Backup: backupRef(), ToVM: "other"}, "web-1"},
		"verify":        {&m.VerifyBackup{Backup: backupRef()}, "web-1"},
		"delete":        {&m.DeleteBackup{Backup: backupRef()}, "web-1"},
		"list of a VM":  {&m.ListBackups{VM: "web-1", Repository: repo()}, "web-1"},
		"list of a NAS": {&m.ListBackups{Repository: repo()}, "nas:/backup"},
	} {
		if got := tt.cmd.Target(); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestMaxAttempts(t *testing.T) {
	if got := (m.Header{}).MaxAttempts(); got != m.DefaultAttempts {
		t.Errorf("without: %d", got)
	}
	if got := (m.Header{Attempts: 7}).MaxAttempts(); got != 7 {
		t.Errorf("with 7: %d", got)
	}
}

// toRBD makes a restore one to images: disk, image, disk, image, ….
func toRBD(pairs ...string) func(object) {
	return func(o object) {
		images := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			images[pairs[i]] = pairs[i+1]
		}
		for _, name := range []string{"to_dir", "format", "define", "disks"} {
			delete(o, name)
		}
		o["to_rbd"] = images
	}
}

package ledger

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/pod"
)

func record(container string, s State) Record {
	return Record{
		ID: ID{"flock", container, "eth0"}, State: s, Pod: pod.Ref{Namespace: "shop", Name: "web-0", UID: "u1"},
		HostIf: "flock01234567", MTU: 1500,
		Set: address.Set{Primary: []address.Granted{
			{Addr: netip.MustParseAddr("2001:db8::1"), CIDR: netip.MustParsePrefix("2001:db8::/64")},
			{Addr: netip.MustParseAddr("10.0.0.1"), Pool: "shop"},
		}},
	}
}

// in returns the directory and what is logged of it.
func in(dir string) (files, *bytes.Buffer) {
	var log bytes.Buffer
	return files{dir, slog.New(slog.NewTextHandler(&log, nil))}, &log
}

// openFiles wants all files to be readable.
func openFiles(t *testing.T, dir string) (files, []Record) {
	t.Helper()
	f, log := in(dir)
	records, unreadable := f.open()
	if len(unreadable) > 0 || log.Len() > 0 {
		t.Fatalf("unreadable: %v\n%s", unreadable, log)
	}
	return f, records
}

func TestRecordsSurviveReopening(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "attachments")
	f, rs := openFiles(t, dir)
	if len(rs) != 0 {
		t.Fatalf("a new directory holds %v", rs)
	}
	a, b := record("a", Pending), record("b", Committed)
	for _, r := range []Record{a, b, record("c", Released)} {
		must(t, f.put(r))
	}
	a.State = Committed
	must(t, f.put(a))
	for range 2 { // the second finds nothing, which is no error
		must(t, f.delete(ID{"flock", "c", "eth0"}))
	}
	must(t, os.WriteFile(filepath.Join(dir, ".a@eth0.json.new"), []byte(`{"con`), 0o600)) // of a write that was cut short
	if _, got := openFiles(t, dir); !reflect.DeepEqual(got, []Record{a, b}) {
		t.Errorf("reopened, it holds\n %+v, want\n %+v", got, []Record{a, b})
	}
	if _, err := os.Stat(filepath.Join(dir, ".a@eth0.json.new")); err == nil {
		t.Error("what an interrupted write left is still there")
	}
	must(t, os.RemoveAll(dir)) // under a running agent
	must(t, f.put(a))
	if _, got := openFiles(t, dir); len(got) != 1 {
		t.Errorf("after the directory was removed it holds %+v", got)
	}
}

// A container ID may hold dots and dashes, so the pair must not be joined by one.
func TestIDsDoNotCollide(t *testing.T) {
	dir := t.TempDir()
	f, _ := openFiles(t, dir)
	x, y := record("a.b", Committed), record("a", Committed)
	x.IfName, y.IfName = "c", "b.c"
	for _, r := range []Record{x, y} {
		must(t, f.put(r))
		if got := idOf(fileName(r.ID)); !got.Matches(r.ID) {
			t.Errorf("file %s is taken for that of %v", fileName(r.ID), got)
		}
	}
	if _, got := openFiles(t, dir); len(got) != 2 {
		t.Errorf("two attachments share a file: %+v", got)
	}
}

func TestEarlierBootIsDropped(t *testing.T) {
	for _, tt := range []struct {
		name, boot string
		kept       int
	}{
		{"another boot", "11111111-2222-3333-4444-555555555555\n", 0},
		{"its file is empty", "", 1},
		{"its file is cut short", "11111111-2", 1},
		{"its file is missing", "-", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			f, _ := openFiles(t, dir)
			must(t, f.put(record("a", Committed)))
			boot := filepath.Join(dir, bootName)
			if tt.boot == "-" {
				must(t, os.Remove(boot))
			} else {
				must(t, os.WriteFile(boot, []byte(tt.boot), 0o600))
			}
			for range 2 {
				if _, got := openFiles(t, dir); len(got) != tt.kept {
					t.Errorf("it holds %+v, want %d records", got, tt.kept)
				}
			}
		})
	}
}

// The records of the release before this one, byte by byte: an upgrade happens under
// running pods, and so does a roll-back.
const (
	oldCommitted = `{"containerID":"c1","ifName":"eth0","state":"committed","podNamespace":"shop","podName":"web-0","podUID":"u1","hostIf":"flock01234567","mtu":1500,"addrs":[{"addr":"2001:db8:1::5","cidr":"2001:db8:1::/64"},{"addr":"203.0.113.7"}],"further":[{"addr":"203.0.113.8"}],"anycast":[{"addr":"2001:db8:53::53","pool":"dns"}]}`
	oldResting   = `{"containerID":"c1","ifName":"eth0","state":"resting","podNamespace":"shop","podName":"web-0","podUID":"u1","hostIf":"flock01234567","mtu":1500,"addrs":[{"addr":"2001:db8:1::5","cidr":"2001:db8:1::/64"},{"addr":"203.0.113.7"}],"further":[{"addr":"203.0.113.8"}],"anycast":[{"addr":"2001:db8:53::53","pool":"dns"}],"restsSince":"2030-01-01T00:00:00Z"}`
)

func TestPreviousFormat(t *testing.T) {
	a := netip.MustParseAddr
	want := Record{
		ID: ID{"", "c1", "eth0"}, State: Committed, Pod: pod.Ref{Namespace: "shop", Name: "web-0", UID: "u1"}, HostIf: "flock01234567", MTU: 1500,
		Set: address.Set{
			Primary:   []address.Granted{{Addr: a("2001:db8:1::5"), CIDR: netip.MustParsePrefix("2001:db8:1::/64")}, {Addr: a("203.0.113.7")}},
			Secondary: []address.Granted{{Addr: a("203.0.113.8")}},
			Anycast:   []address.Granted{{Addr: a("2001:db8:53::53"), Pool: "dns"}},
		},
	}
	for _, text := range []string{oldCommitted, oldResting} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "c1@eth0.json"), []byte(text), 0o600))
		f, got := openFiles(t, dir)
		if len(got) != 1 || !reflect.DeepEqual(got[0], want) {
			t.Fatalf("got\n %+v, want\n %+v", got, want)
		}
		// What this release writes is the same but for what is new, which the previous
		// one passes over.
		must(t, f.put(got[0]))
		b, err := os.ReadFile(filepath.Join(dir, "c1@eth0.json"))
		must(t, err)
		var written, previous map[string]any
		must(t, json.Unmarshal(b, &written))
		must(t, json.Unmarshal([]byte(text), &previous))
		previous["version"] = 1.0
		if !reflect.DeepEqual(written, previous) {
			t.Errorf("written\n %s, want\n %s", b, text)
		}
		want.State, want.QuarantinedSince = Quarantined, time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	}
}

// A newer release's record is held: its file stays as it is.
func TestNewerFormat(t *testing.T) {
	for name, tt := range map[string]struct {
		content string
		addrs   int
	}{
		"newer version":          {strings.Replace(oldCommitted, "{", `{"version":2,`, 1), 3},
		"newer version, pending": {strings.Replace(strings.Replace(oldCommitted, "{", `{"version":2,`, 1), "committed", "pending", 1), 3},
		"unknown state":          {strings.Replace(oldCommitted, "committed", "migrating", 1), 3},
		"no state":               {strings.Replace(oldCommitted, `"state":"committed",`, "", 1), 3},
		"fields of other types":  {`{"version":7,"containerID":["c1"],"addrs":"2001:db8:1::5"}`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "c1@eth0.json")
			must(t, os.WriteFile(path, []byte(tt.content), 0o600))
			f, log := in(dir)
			got, unreadable := f.open()
			if len(got) != 1 || len(unreadable) != 0 || got[0].State != Unknown || got[0].ContainerID != "c1" || len(got[0].Held()) != tt.addrs {
				t.Errorf("got %+v, unreadable %v; want one record of unknown state with %d addresses", got, unreadable, tt.addrs)
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != tt.content {
				t.Errorf("the file holds %s, %v", b, err)
			}
			if !strings.Contains(log.String(), "c1@eth0.json") {
				t.Errorf("the log does not name the file:\n%s", log)
			}
		})
	}
}

// What cannot be read is set aside, and keeps nobody from anything.
func TestUnreadableRecordIsSetAside(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"torn":        func(p string) error { return os.WriteFile(p, []byte(oldCommitted[:40]), 0o600) },
		"other name":  func(p string) error { return os.WriteFile(p, []byte(`{"containerID":"b","ifName":"eth0"}`), 0o600) },
		"empty":       func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"zeros":       func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte{0}, 300), 0o600) },
		"a directory": func(p string) error { return os.MkdirAll(filepath.Join(p, "x"), 0o700) },
		"dead link":   func(p string) error { return os.Symlink("/nowhere", p) },
		"bad address": func(p string) error {
			return os.WriteFile(p, []byte(strings.Replace(oldCommitted, "2001:db8:1::5", "2001:db8", 1)), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f, _ := openFiles(t, dir)
			must(t, f.put(record("good", Committed)))
			for range 2 { // the second time there is one aside already
				must(t, make(filepath.Join(dir, "c1@eth0.json")))
				f, log := in(dir)
				got, unreadable := f.open()
				if len(got) != 1 || len(unreadable) != 1 || unreadable[0] != (ID{ContainerID: "c1", IfName: "eth0"}) {
					t.Errorf("got %+v, unreadable %v; want the good one, and c1's unreadable", got, unreadable)
				}
				if !strings.Contains(log.String(), "file=c1@eth0.json reason=") {
					t.Errorf("the log does not name file and reason:\n%s", log)
				}
				must(t, f.put(record("c1", Committed)))
				must(t, f.delete(ID{"", "c1", "eth0"}))
			}
			if _, err := os.Lstat(filepath.Join(dir, unreadableDir, "c1@eth0.json")); err != nil {
				t.Error(err)
			}
			openFiles(t, dir)
		})
	}
}

// TestKillAtAnyInstruction kills a process that does nothing but write, again
// and again: whatever it was doing, the directory opens and every record is whole.
func TestKillAtAnyInstruction(t *testing.T) {
	if dir := os.Getenv("FLOCK_STORE_WRITER"); dir != "" {
		f, _ := openFiles(t, dir)
		os.Stdout.WriteString("writing\n")
		for i := 0; ; i++ {
			r := record("a", []State{Pending, Committed, Released}[i%3])
			r.Pod.Name = strings.Repeat("x", i%500)
			must(t, f.put(r))
			if i%7 == 0 {
				must(t, f.delete(r.ID))
			}
		}
	}
	dir := t.TempDir()
	for range 20 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillAtAnyInstruction$")
		cmd.Env = append(os.Environ(), "FLOCK_STORE_WRITER="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 8)); err != nil {
			t.Fatalf("the writer did not start: %v", err)
		}
		cmd.Process.Kill()
		cmd.Wait()
		openFiles(t, dir)
	}
}

// FuzzParse: no content of a file may do worse than be refused.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{oldCommitted, oldResting, `{"version":9}`, `{}`, ``, `null`, `[]`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := parse("c1@eth0.json", content)
		if err == nil && (!json.Valid(content) || !r.ID.Matches(ID{"", "c1", "eth0"})) {
			t.Errorf("%q was read as %+v", content, r)
		}
		l := Open(Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
		l.hold(r) // whatever addresses it names
	})
}

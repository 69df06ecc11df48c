package store

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func record(container string, s State) Record {
	return Record{
		ID: ID{container, "eth0"}, State: s, PodNamespace: "shop", PodName: "web-0", PodUID: "u1",
		HostIf: "flock01234567", MTU: 1500,
		Addrs: []Address{
			{netip.MustParseAddr("2001:db8::1"), netip.MustParsePrefix("2001:db8::/64")},
			{netip.MustParseAddr("10.0.0.1"), netip.Prefix{}},
		},
	}
}

func mustOpen(t *testing.T, dir string) (*Store, []Record) {
	t.Helper()
	s, rs, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, rs
}

func TestRecordsSurviveReopening(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "attachments")
	s, rs := mustOpen(t, dir)
	if len(rs) != 0 {
		t.Fatalf("new store holds %v", rs)
	}
	a, b := record("a", Pending), record("b", Committed)
	for _, r := range []Record{a, b, record("c", Released)} {
		if err := s.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	a.State = Committed
	if err := s.Put(a); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing and is content
		if err := s.Delete(ID{"c", "eth0"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, got := mustOpen(t, dir); !reflect.DeepEqual(got, []Record{a, b}) {
		t.Errorf("reopened store holds\n %+v, want\n %+v", got, []Record{a, b})
	}
}

// A container ID may hold dots and dashes, so the pair must not be joined by one.
func TestIDsDoNotCollide(t *testing.T) {
	dir := t.TempDir()
	s, _ := mustOpen(t, dir)
	x, y := record("a.b", Committed), record("a", Committed)
	x.IfName, y.IfName = "c", "b.c"
	for _, r := range []Record{x, y} {
		if err := s.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, got := mustOpen(t, dir); len(got) != 2 {
		t.Errorf("two attachments share a file: %+v", got)
	}
}

func TestEarlierBootIsDropped(t *testing.T) {
	dir := t.TempDir()
	s, _ := mustOpen(t, dir)
	if err := s.Put(record("a", Committed)); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(other, []byte("another boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	old := bootIDPath
	bootIDPath = other
	t.Cleanup(func() { bootIDPath = old })
	if _, got := mustOpen(t, dir); len(got) != 0 {
		t.Errorf("after a reboot the store still holds %+v", got)
	}
}

func TestUnreadableRecordIsNamed(t *testing.T) {
	for name, content := range map[string]string{
		"torn":       `{"containerID":"a","ifN`,
		"other name": `{"containerID":"b","ifName":"eth0"}`,
		"empty":      ``,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "a@eth0.json")
			mustOpen(t, dir)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, err := Open(dir); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want an error that names %s", err, path)
			}
		})
	}
}

// TestKillAtAnyInstruction kills a process that does nothing but write, again
// and again: whatever it was doing, the store opens and every record is whole.
func TestKillAtAnyInstruction(t *testing.T) {
	if dir := os.Getenv("FLOCK_STORE_WRITER"); dir != "" {
		s, _, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("writing\n")
		for i := 0; ; i++ {
			r := record("a", []State{Pending, Committed, Released}[i%3])
			r.PodName = strings.Repeat("x", i%500)
			if err := s.Put(r); err != nil {
				t.Fatal(err)
			}
			if i%7 == 0 {
				if err := s.Delete(r.ID); err != nil {
					t.Fatal(err)
				}
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
		mustOpen(t, dir)
	}
}

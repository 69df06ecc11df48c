package crash

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var (
	planted = flag.Bool("planted", false, "have TestPlanted plant bugs, each of which the other tests must find")
	agents  = flag.String("agents", "", "directory with the programs to test, in place of those that are built")
)

// bugs are planted in a copy of a file; the build takes the copy (go build -overlay). The test
// must fail with each of them, and say what it is about.
var bugs = []struct {
	name, file, right, wrong string
	test, says               string
}{
	{
		name: "lost undo: an ADD that fails leaves its link", file: "pkg/agent/attacher.go",
		right: "err = errors.Join(err, undo())\n", wrong: "_ = undo\n",
		test: "TestFailEveryCall/ADD", says: "which is no pod's",
	},
	{
		name: "lost undo: a start keeps what was half done", file: "pkg/agent/reconcile.go",
		right: "default:\n\t\t\ta.ledger.Release(r.ID)\n", wrong: "default:\n",
		test: "TestKillAtEveryStep/ADD", says: "ADD, killed before effect",
	},
	{
		name: "swapped order: ADD answers, then it records", file: "pkg/agent/attacher.go",
		right: "if err := a.ledger.Commit(record.ID); err != nil {\n", wrong: "time.AfterFunc(20*time.Millisecond, func() { a.ledger.Commit(record.ID) })\n\tif err := error(nil); err != nil {\n",
		test: "TestKillAtEveryStep/ADD", says: "ADD, killed before effect",
	},
	{
		name: "swapped order: DEL forgets the pod, then it takes the link down", file: "pkg/agent/attacher.go",
		right: "link, there, err := a.host.TakeDown(id.ContainerID)\n", wrong: "a.ledger.Free(r.ID)\n\tlink, there, err := a.host.TakeDown(id.ContainerID)\n",
		test: "TestFailEveryCall/DEL", says: "DEL, call ",
	},
	{
		name: "missed wake-up: events of links that are gone are not followed", file: "pkg/agent/reconcile.go",
		right: "func(l wiring.Link) { a.linkGone(l.HostIf) }, lost)", wrong: "func(wiring.Link) {}, lost)",
		test: "TestKillAtEveryStep/ADD", says: "which is no pod's",
	},
	{
		name: "missed wake-up: a change of the kernel's state wakes no repair", file: "pkg/datapath/watch/runner_linux.go",
		right: "\tselect {\n\tcase r.wake <- struct{}{}:\n\tdefault:\n\t}\n", wrong: "",
		test: "TestKillAtEveryStep/repair", says: "repair",
	},
}

// TestPlanted builds agents with a bug each, and runs the test that must find it. Without -planted
// it only looks whether they can be planted still.
func TestPlanted(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bugs {
		t.Run(b.name, func(t *testing.T) {
			dir := t.TempDir()
			source, err := os.ReadFile(filepath.Join(root, b.file))
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(source), b.right); n != 1 {
				t.Fatalf("%s: what the bug replaces is there %d times", b.file, n)
			}
			if !*planted {
				return
			}
			wrong, overlay := filepath.Join(dir, "wrong.go"), filepath.Join(dir, "overlay.json")
			replace, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, b.file): wrong}})
			if err != nil {
				t.Fatal(err)
			}
			for path, content := range map[string]string{wrong: strings.Replace(string(source), b.right, b.wrong, 1), overlay: string(replace)} {
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := build(dir, "-overlay", overlay); err != nil {
				t.Fatal(err)
			}
			// One that finds nothing has tried all points.
			out, err := exec.Command(os.Args[0], "-test.run", "^"+strings.ReplaceAll(b.test, "/", "$/^")+"$", "-test.failfast", "-test.v",
				"-full", "-patience", "5s", "-agents", dir).CombinedOutput()
			if err == nil {
				t.Fatalf("%s did not find it:\n%s", b.test, out)
			}
			var said string
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, b.says) {
					said = strings.TrimSpace(line)
					break
				}
			}
			if said == "" {
				t.Fatalf("%s found something else:\n%s", b.test, out)
			}
			t.Logf("found by %s: %s", b.test, said)
		})
	}
}

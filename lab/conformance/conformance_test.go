package conformance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/lab/components"
)

func TestResults(t *testing.T) {
	dir := t.TempDir()
	if _, err := readResults(dir); err == nil || !strings.Contains(err.Error(), "no junit*.xml") {
		t.Errorf("without a report: %v", err)
	}
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("junit_01.xml", `<testsuites><testsuite>
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"></testcase>
<testcase name="[It] b" status="passed" time="2.25"></testcase>
<testcase name="[It] left out" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] c" status="skipped" time="0"><skipped message="skipped - needs zones"></skipped></testcase>
</testsuite></testsuites>`)
	write("junit_02.xml", `<testsuites><testsuite>
<testcase name="[It] a" status="passed" time="11"></testcase>
<testcase name="[It] d" status="timedout" time="3"></testcase>
</testsuite></testsuites>`)
	r, err := readResults(dir)
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	r.print(&said)
	want := `skipped itself:    0.0 s  [It] c: needs zones
failed:    3.0 s  [It] d (timedout)
2 passed, 1 failed
`
	if said.String() != want {
		t.Errorf("printed\n%swant\n%s", &said, want)
	}
	write("junit_03.xml", "<testsuites>")
	if _, err := readResults(dir); err == nil || !strings.Contains(err.Error(), "junit_03.xml") {
		t.Errorf("with a report that is cut off: %v", err)
	}
}

func TestReadTestLog(t *testing.T) {
	for name, c := range map[string]struct{ log, want, err string }{
		"passed, failed and skipped": {
			log: `=== RUN   TestConformance
    conformance_test.go:1: --- PASS: TestConformance/of-a-log (0.00s)
--- FAIL: TestConformance (12.30s)
    --- PASS: TestConformance/B (1.25s)
        --- PASS: TestConformance/B/Should_do_something (1.00s)
    --- FAIL: TestConformance/A (11.00s)
        --- FAIL: TestConformance/A/Should_do_something (1.00s)
    --- SKIP: TestConformance/C (0.00s)
FAIL
`,
			want: "skipped itself:   0.00 s  C\nfailed:  11.00 s  A\n1 passed, 1 failed\n",
		},
		"nothing came to run":   {log: "--- FAIL: TestConformance (300.00s)\nFAIL\n", want: "failed: the set-up\n0 passed, 1 failed\n"},
		"no test was to be run": {log: "--- PASS: TestConformance (30.00s)\nPASS\n", want: "0 passed, 0 failed\n"},
		"cut off":               {log: "    --- PASS: TestConformance/B (1.25s)\n", err: "did not come to their end"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, logName), []byte(c.log), 0o644); err != nil {
				t.Fatal(err)
			}
			r, err := readTestLog(dir)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			if r.print(&said); said.String() != c.want {
				t.Errorf("printed\n%swant\n%s", &said, c.want)
			}
		})
	}
}

func TestSameVersion(t *testing.T) {
	for _, of := range []components.Release{"", components.Newest} {
		if err := sameVersion(of); err != nil {
			t.Errorf("%q: %v", of, err)
		}
	}
	if err := sameVersion(components.Oldest); err == nil || !strings.Contains(err.Error(), components.OldestKubernetes) || !strings.Contains(err.Error(), "lab down, then lab up --kubernetes newest") {
		t.Errorf("the oldest Kubernetes: %v; want an error that names it and what to do", err)
	}
}

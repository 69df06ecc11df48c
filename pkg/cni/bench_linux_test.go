package cni

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/cni/wire"
)

// BenchmarkPlugin times whole runs of the plugin's process, from fork to exit,
// beside two floors in the same run: the smallest process there is, and a Go
// program that does nothing.
//
//	go test -run '^$' -bench Plugin -benchtime 1000x ./pkg/cni
func BenchmarkPlugin(b *testing.B) {
	socket := serve(b, &recorder{})
	netNS, _ := newNetNS(b)
	config := conf("1.1.0", socket, "")
	shipped := filepath.Join(pluginDir, "flock")

	for _, c := range []struct {
		name    string
		program string
		env     []string
		want    string // in the output
	}{
		{"floor/true", "/bin/true", nil, ""},
		{"floor/empty-go-program", emptyProgram(b), nil, ""},
		{"VERSION", shipped, []string{"CNI_COMMAND=VERSION"}, "supportedVersions"},
		{"ADD", shipped, addEnv("ADD", netNS), "2001:db8:100:1::a/128"},
		{"DEL", shipped, addEnv("DEL", netNS), ""},
	} {
		b.Run(c.name, func(b *testing.B) {
			took := make([]time.Duration, 0, b.N)
			for b.Loop() {
				cmd := exec.Command(c.program)
				cmd.Env = append([]string{"PATH=/usr/bin"}, c.env...)
				cmd.Stdin = strings.NewReader(config)
				start := time.Now()
				out, err := cmd.Output()
				took = append(took, time.Since(start))
				if err != nil || !strings.Contains(string(out), c.want) {
					b.Fatalf("%v: %s", err, out)
				}
			}
			slices.Sort(took)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

func emptyProgram(b *testing.B) (path string) {
	b.Helper()
	dir := b.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	path = filepath.Join(dir, "empty")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return path
}

// BenchmarkAgentAnswer is the agent's part of an ADD without its backend.
func BenchmarkAgentAnswer(b *testing.B) {
	d := &dispatcher{backend: &recorder{}, log: discard, vetNetNS: func(*os.File) error { return nil }}
	r := wire.Request{Env: addEnv("ADD", "/run/netns/a"), Stdin: []byte(conf("1.1.0", "/run/flock/cni.sock", ""))}
	for b.Loop() {
		if answer := d.answer(b.Context(), r, os.Stdin); answer.Exit != 0 {
			b.Fatalf("%s", answer.Output)
		}
	}
}

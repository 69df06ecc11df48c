package bench

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Each takes its turns, one pod at a time or several at once, in the host of its own.
func TestInTurns(t *testing.T) {
	for _, width := range []int{1, 3} {
		log := filepath.Join(t.TempDir(), "log")
		runtimes := []runtimeOf{
			fake(t, fakeConf{Name: "a", Addresses: []string{"10.1.2.3/32"}, Log: log}, []int{32}),
			fake(t, fakeConf{Name: "b", Addresses: []string{"10.1.2.3/32"}, Log: log}, []int{32}),
		}
		times, err := inTurns(t.Context(), runtimes, width, 6)
		if err != nil {
			t.Fatal(err)
		}
		for _, of := range times {
			for _, samples := range [][]time.Duration{of.add, of.del, of.settled} {
				if len(samples) != 6 || slices.Min(samples) <= 0 {
					t.Errorf("%d at once: samples %v, want 6", width, samples)
				}
			}
		}
		pods := map[string]int{}
		for line := range strings.Lines(string(must(os.ReadFile(log)))) {
			f := strings.Fields(line) // network, command, host, pod
			pods[f[3]]++
			if host := map[string]string{"a": inode(runtimes[0].host), "b": inode(runtimes[1].host)}[f[0]]; f[2] != host {
				t.Errorf("%s: ran in %s, want %s", line, f[2], host)
			}
		}
		for pod, calls := range pods {
			if calls%2 != 0 { // a namespace's number may come again
				t.Errorf("pod %s had %d calls", pod, calls)
			}
		}
	}
}

func TestLocalTable(t *testing.T) {
	ms := func(all ...int) (samples []time.Duration) {
		for _, n := range all {
			samples = append(samples, time.Duration(n)*time.Millisecond)
		}
		return samples
	}
	var out bytes.Buffer
	err := localTable(&out, []runtimeOf{{name: "new"}, {name: "base"}}, []podTimes{
		{ms(1, 2, 30), ms(1, 1, 1), ms(5, 5, 5)},
		{ms(2, 4, 60), ms(10, 10, 10), ms(20, 20, 20)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Fields(strings.Split(out.String(), "\n")[1]), strings.Fields("new 2.000 30.000 30.000 0.500 1.000 1.000 0.100 5.000"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

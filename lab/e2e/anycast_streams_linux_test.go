//go:build cluster

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/plan"
)

// streams are connections of the outside host that get a line every 100 ms, each
// from one pod for as long as it lasts.
type streams struct {
	url string
	n   int
	background
}

// stream is one of them, as far as it has come.
type stream struct {
	pod   string
	last  time.Time // line
	ended string    // and why; empty while it goes on
}

// openStreams returns when all have got their first line.
func openStreams(t *testing.T, n int, url string) *streams {
	t.Helper()
	s := &streams{url: url, n: n}
	echo := "/var/lib/flock-lab/" + labName + "/images/bin/echo"
	s.start(t, plan.Outside, "sh", "-c", fmt.Sprintf(
		`for i in $(seq %d); do %s get -follow -timeout 0 "%s?interval=100ms&stream=$i" & done; wait`, n, echo, url))
	eventually(t, 60*time.Second, func() error {
		if got := len(s.all()); got != n {
			return fmt.Errorf("%d streams of %s, want %d: %s", got, url, n, s.said())
		}
		return nil
	})
	return s
}

// all are the streams by their URLs.
func (s *streams) all() map[string]stream {
	said := s.said()
	all := map[string]stream{}
	for line := range strings.Lines(said[:strings.LastIndexByte(said, '\n')+1]) {
		var r struct {
			URL   string
			OK    bool
			Error string
			Wall  time.Time
			Body  struct{ Pod string }
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			continue // what the shell or the program says besides
		}
		one := all[r.URL]
		if r.Body.Pod != "" {
			one.pod, one.last = r.Body.Pod, r.Wall
		} else {
			one.ended = fmt.Sprintf("at %s: %s", r.Wall.Format("15:04:05.000"), r.Error)
		}
		all[r.URL] = one
	}
	return all
}

// of counts those that are, or were, with a pod.
func (s *streams) of(pod string) (n int) {
	for _, one := range s.all() {
		if one.pod == pod {
			n++
		}
	}
	return n
}

// unbroken fails for each that has ended or has gone silent, but for those of the pod
// that is excepted.
func (s *streams) unbroken(t *testing.T, except string) {
	t.Helper()
	began := time.Now()
	eventually(t, 60*time.Second, func() error {
		for url, one := range s.all() {
			if one.pod != except && one.ended == "" && one.last.Before(began) {
				return fmt.Errorf("%s of pod %s: silent since %s", url, one.pod, one.last.Format("15:04:05.000"))
			}
		}
		return nil
	})
	pods := map[string]int{}
	for url, one := range s.all() {
		if one.pod != except && one.ended != "" {
			t.Errorf("%s of pod %s ended %s", url, one.pod, one.ended)
		}
		pods[one.pod]++
	}
	t.Logf("long-lived connections to %s, by pod: %v", s.url, pods)
}

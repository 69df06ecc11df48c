package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// sightings are what an observer, a process of its own, has seen so far.
type sightings struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the observer has ended

	mu   sync.Mutex // guards all below
	more chan struct{}
	all  []sighting
	err  error // the observer's end
}

// observing starts an observer and returns when it watches.
func observing(ctx context.Context, in observeInput) (*sightings, error) {
	input, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", NodeCommand, observerName)
	cmd.Stdin, cmd.Stderr = strings.NewReader(string(input)), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &sightings{cmd: cmd, done: make(chan struct{}), more: make(chan struct{})}
	go func() {
		defer close(s.done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var seen sighting
			if err := json.Unmarshal(lines.Bytes(), &seen); err == nil {
				s.add(seen, nil)
			}
		}
		s.add(sighting{}, errors.Join(errors.New("the observer ended"), lines.Err(), cmd.Wait()))
	}()
	_, err = s.await(ctx, 0, 20*time.Second, mark{What: watching, Yes: true})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *sightings) add(seen sighting, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err = err; err == nil {
		s.all = append(s.all, seen)
	}
	close(s.more)
	s.more = make(chan struct{})
}

// close ends the observer.
func (s *sightings) close() {
	_ = s.cmd.Process.Signal(os.Interrupt)
	<-s.done
}

// mark is a sighting to wait for.
type mark struct {
	What string
	Addr netip.Addr
	Yes  bool
}

func (m mark) String() string { return fmt.Sprintf("%s=%t of %s", m.What, m.Yes, m.Addr) }

// await returns when each of the marks was first seen after since.
func (s *sightings) await(ctx context.Context, since int64, patience time.Duration, marks ...mark) (map[mark]int64, error) {
	missing := make(map[mark]bool, len(marks))
	for _, m := range marks {
		missing[m] = true
	}
	found := make(map[mark]int64, len(marks))
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for next := 0; ; {
		s.mu.Lock()
		for ; next < len(s.all); next++ {
			seen := s.all[next]
			if m := (mark{seen.What, seen.Addr, seen.Yes}); seen.At > since && missing[m] {
				found[m] = seen.At
				delete(missing, m)
			}
		}
		more, err := s.more, s.err
		s.mu.Unlock()
		if len(missing) == 0 {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-limit.C:
			var which []string
			for m := range missing {
				if which = append(which, m.String()); len(which) == 3 {
					break
				}
			}
			return nil, fmt.Errorf("%d of %d things were not seen within %s: %s, …", len(missing), len(marks), patience, strings.Join(which, ", "))
		}
	}
}

// seen are all sightings of a kind since then.
func (s *sightings) seen(what string, since int64) (found []sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.all {
		if one.What == what && one.At > since {
			found = append(found, one)
		}
	}
	return found
}

// marksOf has a mark of the kind for each address.
func marksOf(what string, yes bool, addrs []netip.Addr) []mark {
	marks := make([]mark, len(addrs))
	for i, a := range addrs {
		marks[i] = mark{what, a, yes}
	}
	return marks
}

package anycast

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

// A world makes events of numbers, keeps all of them, and says from the whole
// history, by another way than State, who has to be announced.
type world struct {
	now      time.Time
	history  []happened
	state    *State
	kernel   map[netip.Addr]Entry // as the plans leave it
	reported map[string]bool      // pod, link and address: announced by the transitions
}

type happened struct {
	at    time.Time
	event Event
}

const (
	worldPods  = 3
	worldDelay = 3 * time.Second
)

var worldAddrs = []netip.Addr{dns, dns4}

func newWorld() *world {
	return &world{now: start, state: NewState(start, nil, nil), kernel: map[netip.Addr]Entry{}, reported: map[string]bool{}}
}

// event makes one of a number.
func (w *world) event(n uint32) Event {
	pick := func(k uint32) int { v := n % k; n /= k; return int(v) }
	kind, p := pick(12), pick(worldPods)
	uid := pod.UID(rune('a' + p))
	generation := pick(3)
	link := 10 + p + worldPods*generation // a later sandbox has a higher ifindex
	sb := fmt.Sprintf("s%s%d", uid, generation)
	container := fmt.Sprintf("c%s%d", uid, pick(4))
	v := Readiness{UID: uid, Ready: pod.Ready, Containers: []Container{{Name: "main", ID: container}}}
	if pick(4) == 0 {
		v.Ready = pod.NotReady
	}
	switch kind {
	case 0, 1:
		a := Attached{ContainerID: sb, Link: link, Pod: pod.Ref{UID: uid, Name: string(uid)}}
		for i, addr := range worldAddrs {
			if pick(4) > 0 {
				a.Grants = append(a.Grants, Grant{Addr: addr, Delay: time.Duration(i) * worldDelay})
			}
		}
		return a
	case 2:
		return Detached{sb}
	case 3, 4, 5, 6:
		switch pick(16) {
		case 0:
			v.Terminating = true
		case 1:
			v.Ready = pod.Unknown
		}
		return v
	case 7:
		return Exited{ContainerID: []string{container, container, sb}[pick(3)], At: w.now}
	case 8, 9:
		return Link{Index: link, Up: pick(3) > 0}
	case 10:
		if pick(3) > 0 {
			return Resync{[]Readiness{v}}
		}
		return SourceLost{}
	}
	switch pick(8) {
	case 0:
		return Gone{uid}
	case 1:
		return Deleting{uid}
	}
	return nil // time passes
}

// announced derives from the history alone whether a pod's sandbox on a link has
// to be announced at an address, apart from the announce delay; and since when.
func (w *world) announced(uid pod.UID, link int, addr netip.Addr) (bool, time.Time) {
	var (
		attached = map[string]Attached{}
		linkUp   = map[int]bool{}
		dead     = map[string]bool{} // containers that a source has named, and sandboxes
		orphans  = map[string]bool{} // other containers
		last     *Readiness
		absent   bool
		deleted  bool
		holds    bool
		from     time.Time
	)
	kill := func() {
		if last != nil {
			dead[last.Containers[0].ID] = true
		}
	}
	newest := func() (string, bool) {
		best := ""
		for id, a := range attached {
			if a.Pod.UID == uid && (best == "" || a.Link > attached[best].Link) {
				best = id
			}
		}
		return best, best != ""
	}
	setReadiness := func(v Readiness) {
		absent = false
		deleted = deleted || v.Terminating
		if v.Ready != pod.Unknown {
			last = &v
			if orphans[v.Containers[0].ID] {
				delete(orphans, v.Containers[0].ID)
				dead[v.Containers[0].ID] = true
			}
		}
	}
	for _, h := range w.history {
		switch e := h.event.(type) {
		case Attached:
			if e.Pod.UID != uid {
				break
			}
			if _, again := attached[e.ContainerID]; !again {
				if _, second := newest(); second {
					kill()
				}
				linkUp[e.Link] = true
				delete(dead, e.ContainerID)
			}
			attached[e.ContainerID] = e
		case Detached:
			if a, ok := attached[e.ContainerID]; ok && a.Pod.UID == uid {
				if n, _ := newest(); n == e.ContainerID {
					kill()
				}
				delete(attached, e.ContainerID)
			}
		case Readiness:
			if e.UID == uid {
				setReadiness(e)
			}
		case Deleting:
			if e.UID == uid && (last != nil || len(attached) > 0) {
				deleted = true
			}
		case Gone:
			if e.UID == uid && (last != nil || len(attached) > 0) {
				deleted, absent = true, true
			}
		case Resync:
			absent = true
			for _, v := range e.Pods {
				if v.UID == uid {
					setReadiness(v)
				}
			}
		case Exited:
			_, sandbox := attached[e.ContainerID]
			if sandbox || last != nil && last.Containers[0].ID == e.ContainerID {
				dead[e.ContainerID] = true
			} else {
				orphans[e.ContainerID] = true
			}
		case Link:
			linkUp[e.Index] = e.Up
		}
		if len(attached) == 0 && (absent || last == nil) { // no source has reported the pod
			last, deleted, absent = nil, false, false
			clear(dead)
		}
		n, ok := newest()
		now := ok && attached[n].Link == link && linkUp[link] && !dead[n] && !deleted && !absent &&
			last != nil && last.Ready == pod.Ready && !dead[last.Containers[0].ID]
		if now && !holds {
			from = h.at
		}
		holds = now
	}
	if !holds {
		return false, from
	}
	n, _ := newest()
	for _, g := range attached[n].Grants {
		if g.Addr == addr {
			return true, from
		}
	}
	return false, from
}

// step takes one event in and checks everything that must hold after it.
func (w *world) step(n uint32) error {
	// Odd steps of time: no two deadlines coincide with an event by accident.
	w.now = w.now.Add(time.Duration(n%7) * 501 * time.Millisecond)
	w.state.Tick(w.now)
	if e := w.event(n / 7); e != nil {
		w.history = append(w.history, happened{w.now, e})
		w.state.Apply(w.now, e, w.now)
	}
	for _, p := range w.state.Paths() {
		must, from := w.announced(p.Pod.UID, p.Link, p.Addr)
		if p.Addr == dns4 && w.now.Before(from.Add(worldDelay)) {
			must = must && p.Announced // the delay is judged by the tables
		}
		if must != p.Announced {
			return fmt.Errorf("%s on link %d at %v is %s (%s); must be announced: %t, holds since %v", p.Pod.UID, p.Link, p.Addr, p.Role, p.Reason, must, from.Sub(start))
		}
		if p.Announced != (p.Reason == Ready) {
			return fmt.Errorf("%s is %s for the reason %s", p.Pod.UID, p.Role, p.Reason)
		}
	}
	want, transitions := w.state.Wanted()
	if err := w.apply(Plan(want, w.kernel)); err != nil {
		return err
	}
	if desired := w.state.Desired(); !reflect.DeepEqual(desired, w.kernel) {
		return fmt.Errorf("the kernel has %v, want %v", w.kernel, desired)
	}
	for _, t := range transitions {
		key := fmt.Sprint(t.Pod.UID, t.Link, t.Addr)
		if w.reported[key] == t.Announced {
			return fmt.Errorf("%s: reported announced=%t again", key, t.Announced)
		}
		w.reported[key] = t.Announced
	}
	reported := map[string]bool{}
	for _, p := range w.state.Paths() {
		if p.Announced {
			reported[fmt.Sprint(p.Pod.UID, p.Link, p.Addr)] = true
		}
	}
	maps.DeleteFunc(w.reported, func(_ string, announced bool) bool { return !announced })
	if !maps.Equal(reported, w.reported) {
		return fmt.Errorf("by the transitions %v are announced, by the paths %v", w.reported, reported)
	}
	return nil
}

// apply does a plan as the kernel would, which refuses what cannot be.
func (w *world) apply(plan []Change) error {
	announcing := false
	for _, c := range plan {
		e := w.kernel[c.Addr]
		had := e.Announced || e.Local
		ok := true
		switch c.Op {
		case Withdraw:
			ok = e.Announced && !announcing
			e.Announced = false
		case DelLocal:
			ok = e.Local
			e.Local = false
		case DelGroup:
			ok = len(e.Members) > 0 && !had // routes would go with it, in no order
			e.Members = nil
		case SetGroup:
			ok = len(e.Members) > 0 && len(c.Members) > 0
			e.Members = c.Members
		case AddGroup:
			ok = len(e.Members) == 0 && len(c.Members) > 0
			e.Members = c.Members
		case AddLocal:
			ok = len(e.Members) > 0 && !e.Local
			e.Local, announcing = true, true
		case Announce:
			ok = len(e.Members) > 0 && !e.Announced
			e.Announced, announcing = true, true
		}
		if !ok {
			return fmt.Errorf("plan %v: %v cannot be done over %v", plan, c, w.kernel[c.Addr])
		}
		w.kernel[c.Addr] = e
		if len(e.Members) == 0 {
			delete(w.kernel, c.Addr)
		}
	}
	return nil
}

func TestStateAgainstTheWholeHistory(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 0))
		w := newWorld()
		for range 120 {
			if err := w.step(r.Uint32()); err != nil {
				for _, h := range w.history {
					t.Logf("%v %T%+v", h.at.Sub(start), h.event, h.event)
				}
				t.Fatalf("seed %d, %v: %v", seed, w.now.Sub(start), err)
			}
		}
	}
}

// FuzzState is to be run with -fuzzminimizetime=1x: what a map's order decides is
// no coverage that an input could be minimized for.
func FuzzState(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	seed := make([]byte, 400)
	for i := range seed {
		seed[i] = byte(r.Uint32())
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWorld()
		for ; len(b) >= 4 && len(w.history) < 200; b = b[4:] {
			if err := w.step(binary.LittleEndian.Uint32(b)); err != nil {
				for _, h := range w.history {
					t.Logf("%v %T%+v", h.at.Sub(start), h.event, h.event)
				}
				t.Fatal(err)
			}
		}
	})
}

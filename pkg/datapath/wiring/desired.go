package wiring

import (
	"reflect"
	"sync"
)

// desired is what the kernel shall have: the wiring's desired state as a value.
type desired struct {
	mu sync.Mutex // guards all below
	// node is nil until it is known.
	node *NodeState
	pods map[string]*pod // by container ID
}

// pod is an attachment that is wired, or is being wired.
type pod struct {
	// mu is held while the kernel is changed for the pod.
	mu sync.Mutex
	// All below change only with both mu and the desired state's held.
	attachment Attachment
	host       end // what the host's side shall be
	index      int // of the host end
	wired      bool
}

// enter returns the pod of a container with its mu held, made where there is none.
func (d *desired) enter(containerID string) *pod {
	for {
		d.mu.Lock()
		p := d.pods[containerID]
		if p == nil {
			if d.pods == nil {
				d.pods = map[string]*pod{}
			}
			p = &pod{}
			d.pods[containerID] = p
		}
		d.mu.Unlock()
		p.mu.Lock()
		if d.has(containerID, p) {
			return p
		}
		p.mu.Unlock() // it was removed meanwhile
	}
}

func (d *desired) has(containerID string, p *pod) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pods[containerID] == p
}

// set records that p is wired as a. The caller has p's mu.
func (d *desired) set(p *pod, a Attachment, index int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p.attachment, p.host, p.index, p.wired = a, wiringOf(a).host, index, true
}

// leave gives p back; one that is not wired is forgotten.
func (d *desired) leave(containerID string, p *pod) {
	d.mu.Lock()
	if !p.wired && d.pods[containerID] == p {
		delete(d.pods, containerID)
	}
	d.mu.Unlock()
	p.mu.Unlock()
}

// drop forgets a container's wiring, and returns the index that its link had; 0 if that is
// not known. It waits for those who work on it.
func (d *desired) drop(containerID string) (index int) {
	d.mu.Lock()
	p := d.pods[containerID]
	d.mu.Unlock()
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	p.wired = false
	if d.pods[containerID] == p {
		delete(d.pods, containerID)
	}
	return p.index
}

// snapshot is what is desired at one moment.
type snapshot struct {
	node *NodeState
	pods []wanted
}

// wanted is a pod as it was when the snapshot was taken.
type wanted struct {
	pod        *pod
	attachment Attachment
	host       end
	index      int
}

func (d *desired) snapshot() snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := snapshot{node: d.node}
	for _, p := range d.pods {
		if p.wired {
			s.pods = append(s.pods, wanted{p, p.attachment, p.host, p.index})
		}
	}
	return s
}

// setIndex records the index of an adopted pod's link, unless the pod has changed.
func (d *desired) setIndex(w *wanted, index int) {
	if !d.begin(*w) {
		return
	}
	defer w.pod.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	w.pod.index, w.index = index, index
}

// begin takes the mu of a snapshot's pod, unless somebody is at work on it or it has changed.
func (d *desired) begin(w wanted) bool {
	if !w.pod.mu.TryLock() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := w.pod; p.wired && p.index == w.index && reflect.DeepEqual(p.attachment, w.attachment) {
		return true
	}
	w.pod.mu.Unlock()
	return false
}

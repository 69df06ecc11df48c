// Package store keeps what the node has promised: one record for each
// attachment, from before its first address is used until its link is gone.
//
// It decides nothing. Its invariant: after a kill at any instruction, each
// record is the old one or the new one, whole. Records share the life of the
// sandboxes: the directory is on a tmpfs, and what an earlier boot left in a
// directory that is not is dropped at Open, because its sandboxes are gone too.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ID names an attachment: the CNI specification's (container ID, interface name).
type ID struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

func (id ID) String() string { return id.ContainerID + "/" + id.IfName }

// State is how far an attachment has come.
type State string

const (
	// Pending: the addresses are taken, the wiring may be half done. After a
	// crash it is undone; the runtime will ask again.
	Pending State = "pending"
	// Committed: wired; the answer was or is about to be given.
	Committed State = "committed"
	// Released: given up by a DEL; its link may still exist, so its addresses
	// are not free yet.
	Released State = "released"
	// Resting: gone. What is left is when its addresses were last in use.
	Resting State = "resting"
)

// Address is an address that an attachment holds.
type Address struct {
	Addr netip.Addr `json:"addr"`
	// CIDR of the node that it was allocated from; the zero Prefix for one that
	// came from elsewhere.
	CIDR netip.Prefix `json:"cidr,omitzero"`
}

// Anycast is an anycast address that an attachment may announce.
type Anycast struct {
	Addr netip.Addr `json:"addr"`
	// Pool is the AddressPool that granted it.
	Pool string `json:"pool"`
}

// Record is one attachment.
type Record struct {
	ID
	State State `json:"state"`
	// Pod for which the runtime asked; empty for a caller that is not Kubernetes.
	PodNamespace string `json:"podNamespace,omitempty"`
	PodName      string `json:"podName,omitempty"`
	PodUID       string `json:"podUID,omitempty"`
	// HostIf is the host's end of the veth.
	HostIf string `json:"hostIf"`
	// MTU of the link in bytes.
	MTU int `json:"mtu"`
	// Addrs are the pod's own addresses, at most one of each family, IPv6 first.
	Addrs []Address `json:"addrs"`
	// Further are its other static addresses.
	Further []Address `json:"further,omitempty"`
	// Anycast addresses sit on the pod's interface and are routed to it only while
	// the pod is Ready. They are shared with other pods.
	Anycast []Anycast `json:"anycast,omitempty"`
	// RestsSince is when a resting attachment's link was gone.
	RestsSince time.Time `json:"restsSince,omitzero"`
}

// Pod returns namespace/name, as kubectl users write it.
func (r Record) Pod() string { return r.PodNamespace + "/" + r.PodName }

// Held are the addresses that nobody else may have while r stands.
func (r Record) Held() []Address { return slices.Concat(r.Addrs, r.Further) }

// Store is a directory of records. It has one owner; its methods are not safe
// for concurrent use.
type Store struct {
	dir string
}

// bootIDPath names the running boot (see random(4)); a variable for the tests.
var bootIDPath = "/proc/sys/kernel/random/boot_id"

const (
	suffix   = ".json"
	tmpName  = ".tmp"
	bootName = ".boot"
)

// Open opens or makes the store in dir and returns what is in it, ordered by ID.
// A file that cannot be understood is an error that names it: guessing what it
// promised could assign an address twice.
func Open(dir string) (*Store, []Record, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("attachment store: %w", err)
	}
	s := &Store{dir: dir}
	if err := s.dropEarlierBoot(); err != nil {
		return nil, nil, fmt.Errorf("attachment store: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("attachment store: %w", err)
	}
	var records []Record
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, fmt.Errorf("attachment store: %w", err)
		}
		var r Record
		if err := json.Unmarshal(b, &r); err != nil || fileName(r.ID) != e.Name() {
			return nil, nil, fmt.Errorf("attachment store: %s is not a record of flock's (%v): delete it once no pod on this node uses the addresses it names", path, err)
		}
		records = append(records, r)
	}
	return s, records, nil
}

// Put writes r in place of what the store has under r.ID.
func (s *Store) Put(r Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("attachment store: %w", err)
	}
	if err := s.replace(fileName(r.ID), b); err != nil {
		return fmt.Errorf("attachment store: %w", err)
	}
	return nil
}

// Delete removes the record of id, if there is one.
func (s *Store) Delete(id ID) error {
	if err := os.Remove(filepath.Join(s.dir, fileName(id))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("attachment store: %w", err)
	}
	return nil
}

// fileName is injective: a container ID has no '@' (CNI specification, section 2).
func fileName(id ID) string { return id.ContainerID + "@" + id.IfName + suffix }

// replace relies on rename(2) alone. Nothing is synced: on a tmpfs there is
// nothing to sync to, and elsewhere a power loss ends the boot and with it the
// use of the record.
func (s *Store) replace(name string, b []byte) error {
	tmp := filepath.Join(s.dir, tmpName)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.dir, name))
}

func (s *Store) dropEarlierBoot() error {
	now, err := os.ReadFile(bootIDPath)
	if err != nil {
		return err
	}
	then, err := os.ReadFile(filepath.Join(s.dir, bootName))
	if err == nil && slices.Equal(now, then) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		old, err := filepath.Glob(filepath.Join(s.dir, "*"+suffix))
		if err != nil {
			return err
		}
		for _, path := range old {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return s.replace(bootName, now)
}

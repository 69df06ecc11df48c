package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"

	"flock.fritzlab.net/flock/internal/atomicfile"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/pod"
)

// formatVersion is that of the files that are written. Files without a version are
// of the first format, which is this one.
const formatVersion = 1

// bootIDPath names the running boot (see random(4)); a variable for the tests.
var bootIDPath = "/proc/sys/kernel/random/boot_id"

const (
	suffix   = ".json"
	bootName = ".boot"
	// unreadableDir is where files go that cannot be read.
	unreadableDir = "unreadable"
)

// files is the directory of the records: one file for each attachment, from before
// its first address is used until its quarantine ends. After a kill at any instruction
// each is the old record or the new one, whole.
//
// It shares the life of the sandboxes: it is on a tmpfs, and what an earlier boot left
// in a directory that is not is dropped, because its sandboxes are gone too.
type files struct {
	dir string
	log *slog.Logger
}

// file is a record as it is on disk.
type file struct {
	Version      int     `json:"version,omitempty"`
	PodNamespace string  `json:"podNamespace,omitempty"`
	PodName      string  `json:"podName,omitempty"`
	PodUID       pod.UID `json:"podUID,omitempty"`
	Record
}

// open reads all records. What cannot be read or written never keeps the agent from
// its start: it is logged, and the kernel says what the pods of this node have (see
// Rebuild). unreadable are the attachments that files name which were set aside.
func (f files) open() (records []Record, unreadable []ID) {
	if err := sys.MkdirAll(f.dir, 0o700); err != nil {
		f.log.Error("cannot create the directory of the attachment records: no new pod can be attached until it can be written", "dir", f.dir, "error", err)
	}
	f.dropEarlierBoot()
	entries, err := atomicfile.ReadDir(f.dir)
	if err != nil {
		f.log.Error("cannot list the attachment records", "dir", f.dir, "error", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && e.Name() != bootName {
			sys.Remove(filepath.Join(f.dir, e.Name())) // what an interrupted write left
			continue
		}
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		r, err := f.read(e.Name())
		if err != nil {
			f.setAside(e.Name(), err)
			unreadable = append(unreadable, idOf(e.Name()))
			continue
		}
		if r.State == Unknown {
			f.log.Warn("attachment record is of a newer release: its addresses stay held", "file", e.Name(), "pod", r.Pod)
		}
		records = append(records, r)
	}
	return records, unreadable
}

// read returns the record in a file. The error says why it is not one.
func (f files) read(name string) (Record, error) {
	content, err := atomicfile.Read(filepath.Join(f.dir, name))
	if err != nil {
		return Record{}, err
	}
	return parse(name, content)
}

// parse is pure.
func parse(name string, content []byte) (Record, error) {
	var format struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(content, &format); err != nil {
		return Record{}, err
	}
	var in file
	err := json.Unmarshal(content, &in)
	r := in.Record
	r.Pod = pod.Ref{Namespace: in.PodNamespace, Name: in.PodName, UID: in.PodUID}
	switch {
	case format.Version > formatVersion:
		network := r.Network
		r.ID = idOf(name) // of the rest, whatever could be read
		r.Network, r.State = network, Unknown
	case err != nil:
		return Record{}, err
	case fileName(r.ID) != name:
		return Record{}, fmt.Errorf("it is the record of %s", r.ID)
	case r.State != Pending && r.State != Committed && r.State != Released && r.State != Quarantined:
		r.State = Unknown
	}
	return r, nil
}

// setAside keeps a file that cannot be read for people, out of the way of the record
// that follows it.
func (f files) setAside(name string, reason error) {
	to := filepath.Join(f.dir, unreadableDir, name)
	err := sys.Mkdir(filepath.Dir(to), 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		sys.RemoveAll(to) // an earlier one
		err = sys.Rename(filepath.Join(f.dir, name), to)
	}
	if err != nil {
		f.log.Error("ignoring unreadable attachment record, which could not be moved away", "file", name, "reason", reason, "error", err)
		return
	}
	f.log.Error("unreadable attachment record set aside", "file", name, "reason", reason, "to", to)
}

// put writes r in place of what is there under r.ID.
func (f files) put(r Record) error {
	content, err := json.Marshal(file{formatVersion, r.Pod.Namespace, r.Pod.Name, r.Pod.UID, r})
	if err != nil {
		return fmt.Errorf("attachment record %s: %w", r.ID, err)
	}
	path := filepath.Join(f.dir, fileName(r.ID))
	err = atomicfile.Write(path, content)
	if errors.Is(err, fs.ErrNotExist) { // somebody removed the directory
		if err = sys.MkdirAll(f.dir, 0o700); err == nil {
			err = atomicfile.Write(path, content)
		}
	}
	if err != nil {
		return fmt.Errorf("attachment record %s: %w", r.ID, err)
	}
	return nil
}

// delete removes the record of id, if there is one.
func (f files) delete(id ID) error {
	if err := sys.Remove(filepath.Join(f.dir, fileName(id))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("attachment record %s: %w", id, err)
	}
	return nil
}

// fileName is injective: a container ID has no '@' (CNI specification, section 2).
func fileName(id ID) string { return id.ContainerID + "@" + id.IfName + suffix }

// idOf is the inverse of fileName, but for the network.
func idOf(name string) ID {
	container, ifName, _ := strings.Cut(strings.TrimSuffix(name, suffix), "@")
	return ID{ContainerID: container, IfName: ifName}
}

// dropEarlierBoot removes the records of another boot. Where it cannot be known
// whether they are, they stay: what they hold is freed when the kernel has no link
// for it.
func (f files) dropEarlierBoot() {
	now, err := atomicfile.Read(bootIDPath)
	if err != nil {
		f.log.Warn("cannot determine whether the attachment records are from this boot", "error", err)
		return
	}
	path := filepath.Join(f.dir, bootName)
	then, err := atomicfile.Read(path)
	if bytes.Equal(now, then) {
		return
	}
	if err == nil && len(then) == len(now) {
		old, _ := filepath.Glob(filepath.Join(f.dir, "*"+suffix))
		for _, record := range old {
			if err := sys.RemoveAll(record); err != nil {
				f.log.Error("cannot remove the attachment record of an earlier boot", "file", record, "error", err)
			}
		}
	}
	if err := atomicfile.Write(path, now); err != nil {
		f.log.Warn("cannot record the boot ID of the attachment records", "file", path, "error", err)
	}
}

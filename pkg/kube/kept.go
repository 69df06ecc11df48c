package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"reflect"
	"time"

	"flock.fritzlab.net/flock/internal/atomicfile"
	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/sys"
)

// Kept is a value that a file keeps for the agent's next start. It knows what the file holds, not
// only what it was asked to write: what could not be written is tried again, because nothing else
// may ask for it before that start. It belongs to one goroutine, which waits for Due.
type Kept[T any] struct {
	path string
	same func(a, b T) bool
	log  *slog.Logger

	there  bool // the file, when it was read or written last
	held   T    // what the file holds; the zero value stands for no file
	wanted T    // what it is to hold
	failed bool // wanted could not be written
	wait   backoff.Backoff
	again  *time.Timer // of the next attempt
}

// OpenKept reads the file. One that does not parse is as none. Of one that cannot be read nothing
// is known, which is an error: whoever went on would write over it. The file is not written where
// it holds the same; nil compares with [reflect.DeepEqual].
func OpenKept[T any](path string, same func(a, b T) bool, log *slog.Logger) (*Kept[T], error) {
	k := &Kept[T]{path: path, same: same, log: log, wait: backoff.Backoff{First: 100 * time.Millisecond, Last: 10 * time.Second}}
	if same == nil {
		k.same = func(a, b T) bool { return reflect.DeepEqual(a, b) }
	}
	b, err := atomicfile.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read what the agent keeps for its next start: %w; if that stays, remove the file", err)
	}
	var held T
	if err := json.Unmarshal(b, &held); err != nil {
		log.Warn("ignoring a copy that is no valid JSON", "file", path, "error", err)
		return k, nil
	}
	k.held, k.there = held, true
	return k, nil
}

// Get returns what the file holds, the zero value if there is none.
func (k *Kept[T]) Get() T { return k.held }

// Save has the file hold v, now or when Due, also where somebody has removed the file. v must not
// be changed afterwards.
func (k *Kept[T]) Save(v T) {
	if k.same(v, k.held) && !k.removed() {
		k.settle()
		return
	}
	if k.failed && k.same(v, k.wanted) {
		return // Due
	}
	k.wanted = v
	k.write()
}

// removed says whether the file was there and is not.
func (k *Kept[T]) removed() bool {
	if !k.there {
		return false
	}
	_, err := sys.Lstat(k.path)
	return errors.Is(err, fs.ErrNotExist)
}

// Due receives when Retry is to be called.
func (k *Kept[T]) Due() <-chan time.Time {
	if !k.failed {
		return nil
	}
	return k.again.C
}

// Retry writes what could not be written.
func (k *Kept[T]) Retry() {
	if k.failed {
		k.write()
	}
}

func (k *Kept[T]) write() {
	b, err := json.Marshal(k.wanted)
	if err == nil {
		err = atomicfile.Write(k.path, b)
	}
	if err == nil {
		k.held, k.there = k.wanted, true
		k.settle()
		return
	}
	if !k.failed {
		k.log.Warn("cannot keep a copy for the agent's next start, trying again", "file", k.path, "error", err)
	}
	if k.failed = true; k.again == nil {
		k.again = time.NewTimer(k.wait.Next())
	} else {
		k.again.Reset(k.wait.Next())
	}
}

// settle is called where the file holds what it is to hold.
func (k *Kept[T]) settle() {
	if k.failed {
		k.log.Info("the copy for the agent's next start is written", "file", k.path)
		k.again.Stop()
	}
	var none T
	k.failed, k.wanted = false, none
	k.wait.Reset()
}

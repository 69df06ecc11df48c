package policy

import (
	"encoding/json"
	"errors"
	"hash/maphash"
	"io/fs"
	"maps"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/journal"
	"flock.fritzlab.net/flock/internal/sys"
)

// What the API server has said is kept in the file Config.File, so that an agent that
// starts while the API server is away knows what its predecessor knew. A change is in
// the file before it is in the kernel. The keys are "KIND/NAMESPACE/NAME" with the
// trimmed object as value, and "KIND" while all objects of that kind are known.

// heldAnnotation has the addresses that a kept pod held beside those in its status.
const heldAnnotation = "held"

var seed = maphash.MakeSeed()

// protobuf is what the types of Kubernetes' own API are encoded as; those of CRDs have
// only JSON.
type protobuf interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

func encode(o any) ([]byte, error) {
	if p, ok := o.(protobuf); ok {
		return p.Marshal()
	}
	return json.Marshal(o)
}

func decode(b []byte, o any) error {
	if p, ok := o.(protobuf); ok {
		return p.Unmarshal(b)
	}
	return json.Unmarshal(b, o)
}

func (w *watch) key(name objectName) string {
	return w.name + "/" + name.namespace + "/" + name.name
}

// told says, while the file is not open, whether more is known than what it has.
func (e *Enforcer) told() bool {
	return slices.ContainsFunc(e.watches, func(w *watch) bool { return !w.fresh && (w.round > 0 || w.synced) })
}

// open opens the file. What it has is true until the API server has said more: from then on
// it is removed, so that no later start takes it for what is in force, and all is recorded
// anew as the API server says it once more.
func (e *Enforcer) open() error {
	if !e.told() {
		return e.restore()
	}
	err := sys.Remove(e.c.File)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if e.journal, err = journal.Open(e.c.File, func(string, []byte) {}); err != nil {
		return err
	}
	for _, w := range e.watches {
		w.relist()
	}
	clear(e.kept.pods)
	clear(e.kept.sums)
	e.recall()
	return nil
}

// restore takes in what the file has.
func (e *Enforcer) restore() error {
	// The heap only grows, so that collecting often would take most of the time. What it
	// is too large then goes back to the node when the policies are in force.
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	byName := map[string]*watch{}
	for _, w := range e.watches {
		byName[w.name] = w
	}
	clear(e.kept.sums)
	unreadable := map[*watch]error{}
	synced := map[*watch]bool{}
	var changed []func()
	load := func(key string, value []byte) {
		kind, _, isObject := strings.Cut(key, "/")
		w := byName[kind]
		switch {
		case kind == localPodsKind:
			e.loadLocal(key, value)
		case w == nil: // of another release
		case !isObject:
			synced[w] = true
		default:
			o := w.example.DeepCopyObject().(metav1.Object)
			if err := decode(value, o); err != nil {
				unreadable[w] = err
				return
			}
			got := objectName{o.GetNamespace(), o.GetName()}
			if w.key(got) != key {
				unreadable[w] = errors.New("the object's name is another")
				return
			}
			held, is := o.GetAnnotations()[heldAnnotation], known{uid: string(o.GetUID()), sum: maphash.Bytes(seed, value)}
			if held != "" {
				is = knownAs(o)
			}
			if w.take(o, is) && o.GetAnnotations()[heldAnnotation] != held {
				changed = append(changed, func() { w.record(got, o) })
			}
		}
	}
	j, err := journal.Open(e.c.File, load)
	if errors.Is(err, journal.ErrCorrupt) {
		e.c.Log.Warn("cannot read the cached network policies; waiting for the API server", "error", err)
		if err = sys.Remove(e.c.File); err == nil {
			j, err = journal.Open(e.c.File, load)
		}
	}
	if err != nil {
		return err
	}
	e.journal = j
	e.recall()
	for _, record := range changed {
		record()
	}
	var counts []any
	for _, w := range e.watches {
		w.marked = synced[w]
		if err := unreadable[w]; err != nil {
			e.c.Log.Warn("cannot read cached objects; waiting for the API server", "kind", w.name, "error", err)
			continue
		}
		if w.fresh {
			w.synced = true // by what this start has learned elsewhere
		} else if w.synced = synced[w]; w.synced {
			counts = append(counts, w.name, len(w.objects))
		}
	}
	if len(counts) > 0 {
		e.c.Log.Info("enforcing the cached network policies until the API server answers", counts...)
		e.dirty = true
	}
	return nil
}

// record puts a change into the file, with the next flush.
func (w *watch) record(name objectName, o metav1.Object) {
	j := w.e.journal
	if j == nil || w.fresh {
		return
	}
	if o == nil {
		j.Delete(w.key(name))
		return
	}
	b, err := encode(o)
	if err != nil {
		w.e.c.Log.Error("cannot cache an object for the next start of the agent", "kind", w.name, "namespace", name.namespace, "name", name.name, "error", err)
		return
	}
	j.Put(w.key(name), b)
	if j.Buffered() > 1<<20 {
		w.e.flush()
	}
}

// setSynced takes in whether all objects of the kind are known.
func (w *watch) setSynced(synced bool) {
	w.synced = synced
	j := w.e.journal
	if j == nil || w.fresh || w.marked == synced {
		return
	}
	w.marked = synced
	if synced {
		j.Put(w.name, nil)
	} else {
		j.Delete(w.name)
	}
}

// flush writes what was recorded. It is called before the kernel is changed, and again with
// each change and each housekeeping.
func (e *Enforcer) flush() {
	if e.c.File == "" {
		return
	}
	var err error
	if e.journal == nil {
		err = e.open()
	}
	if e.journal != nil {
		if err = e.journal.Flush(); !e.journal.IsOpen() {
			e.journal = nil
		}
	}
	if (err != nil) != e.unkept {
		e.unkept = err != nil
		if err != nil {
			e.c.Log.Error("cannot cache network policies for the next start of the agent, will retry", "error", err)
		} else {
			e.c.Log.Info("network policies are cached again")
		}
	}
}

// knownAs is by what it is seen whether an object differs from what it was.
func knownAs(o metav1.Object) known {
	held := o.GetAnnotations()[heldAnnotation]
	if held != "" {
		annotate(o, heldAnnotation, "")
		defer annotate(o, heldAnnotation, held)
	}
	is := known{uid: string(o.GetUID())}
	if b, err := encode(o); err == nil {
		is.sum = maphash.Bytes(seed, b)
	}
	return is
}

// annotate sets or takes away an annotation of an object that is not shared.
func annotate(o metav1.Object, key, value string) {
	a := maps.Clone(o.GetAnnotations())
	if value == "" {
		delete(a, key)
	} else {
		if a == nil {
			a = map[string]string{}
		}
		a[key] = value
	}
	if len(a) == 0 {
		a = nil
	}
	o.SetAnnotations(a)
}

func joinAddrs(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, ",")
}

func splitAddrs(s string) (addrs []netip.Addr) {
	for one := range strings.SplitSeq(s, ",") {
		if a, err := netip.ParseAddr(one); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// owned is a trimmed object that nobody else has.
func (w *watch) owned(obj any) (metav1.Object, error) {
	trimmed, err := w.trim(obj)
	if err != nil {
		return nil, err
	}
	o, err := meta.Accessor(trimmed)
	if err != nil {
		return nil, err
	}
	if !w.fresh {
		o.SetResourceVersion("")
	}
	return o, nil
}

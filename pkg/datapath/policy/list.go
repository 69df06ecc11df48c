package policy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// A lister is a source whose lists come one object after the other: those of a large
// cluster are never in memory as a whole.
type lister interface {
	// list calls each with each object, which is each's to keep.
	list(ctx context.Context, o metav1.ListOptions, each func(runtime.Object) error) (metav1.ListMeta, error)
}

// streamed is a source of objects of Kubernetes' own API.
type streamed struct {
	*cache.ListWatch
	client   rest.Interface
	resource string
	fields   fields.Selector
	example  runtime.Object
}

func newStreamed(client rest.Interface, resource string, fields fields.Selector, example runtime.Object) cache.ListerWatcher {
	return streamed{cache.NewListWatchFromClient(client, resource, "", fields), client, resource, fields, example}
}

func (s streamed) list(ctx context.Context, o metav1.ListOptions, each func(runtime.Object) error) (metav1.ListMeta, error) {
	o.FieldSelector = s.fields.String()
	body, err := s.client.Get().Resource(s.resource).VersionedParams(&o, metav1.ParameterCodec).Stream(ctx)
	if err != nil {
		return metav1.ListMeta{}, err
	}
	defer body.Close()
	list, err := readList(body, s.example, each)
	if err != nil {
		err = fmt.Errorf("list of %s: %w", s.resource, err)
	}
	return list, err
}

// Of k8s.io/apimachinery/pkg/runtime/serializer/protobuf: a list begins with a magic
// number and a runtime.Unknown, in whose field raw the list is. Every list of the API
// has its metadata and its items in the same fields.
const (
	protobufMagic = "k8s\x00"

	fieldRaw                  = 2 // of runtime.Unknown
	fieldMetadata, fieldItems = 1, 2

	// largestObject is how large an object may be, in bytes. etcd takes 1.5 MiB.
	largestObject = 16 << 20
)

// readList reads a list in protobuf or JSON.
func readList(body io.Reader, example runtime.Object, each func(runtime.Object) error) (list metav1.ListMeta, err error) {
	r := bufio.NewReaderSize(body, 1<<16)
	if magic, err := r.Peek(len(protobufMagic)); err != nil {
		return list, noEOF(err)
	} else if string(magic) != protobufMagic {
		return readJSONList(r, example, each)
	}
	if _, err := r.Discard(len(protobufMagic)); err != nil {
		return list, err
	}
	var item bytes.Buffer
	outer := &message{r: r, left: -1}
	for complete := false; ; {
		field, err := outer.next()
		if err == io.EOF && complete {
			return list, nil
		}
		if err != nil {
			return list, noEOF(err)
		}
		if field != fieldRaw {
			if err := outer.skip(); err != nil {
				return list, err
			}
			continue
		}
		complete = true
		inner := &message{r: r, left: int64(outer.length)}
		for inner.left > 0 {
			field, err := inner.next()
			if err != nil {
				return list, noEOF(err)
			}
			switch field {
			case fieldMetadata:
				b, err := inner.content(&item)
				if err == nil {
					err = list.Unmarshal(b)
				}
				if err != nil {
					return list, err
				}
			case fieldItems:
				b, err := inner.content(&item)
				if err != nil {
					return list, err
				}
				o := example.DeepCopyObject()
				if err := o.(protobuf).Unmarshal(b); err != nil {
					return list, err
				}
				if err := each(o); err != nil {
					return list, err
				}
			default:
				if err := inner.skip(); err != nil {
					return list, err
				}
			}
		}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A message is one of protobuf's that is read field by field.
type message struct {
	r      *bufio.Reader
	left   int64 // bytes of it; negative: up to the end
	length uint64
}

// next reads the head of a field, which must be one with a length.
func (m *message) next() (field uint64, err error) {
	tag, err := m.uvarint()
	if err != nil {
		return 0, err
	}
	const lengthDelimited = 2
	if tag&7 != lengthDelimited {
		return 0, fmt.Errorf("field %d has wire type %d, want one with a length", tag>>3, tag&7)
	}
	if m.length, err = m.uvarint(); err != nil {
		return 0, noEOF(err)
	}
	if m.left >= 0 {
		if int64(m.length) < 0 || int64(m.length) > m.left {
			return 0, fmt.Errorf("field %d has %d bytes, its message has %d", tag>>3, m.length, m.left)
		}
		m.left -= int64(m.length)
	}
	return tag >> 3, nil
}

func (m *message) uvarint() (v uint64, err error) {
	if v, err = binary.ReadUvarint(m.r); err == nil && m.left >= 0 {
		m.left -= int64(len(binary.AppendUvarint(nil, v)))
	}
	return v, err
}

// content reads the field that next has found into a buffer.
func (m *message) content(b *bytes.Buffer) ([]byte, error) {
	if m.length > largestObject {
		return nil, fmt.Errorf("an object has %d bytes", m.length)
	}
	b.Reset()
	_, err := io.CopyN(b, m.r, int64(m.length))
	return b.Bytes(), noEOF(err)
}

func (m *message) skip() error {
	_, err := io.CopyN(io.Discard, m.r, int64(m.length))
	return noEOF(err)
}

func readJSONList(r io.Reader, example runtime.Object, each func(runtime.Object) error) (metav1.ListMeta, error) {
	var list struct {
		Metadata metav1.ListMeta   `json:"metadata"`
		Items    []json.RawMessage `json:"items"`
	}
	if err := json.NewDecoder(r).Decode(&list); err != nil {
		return metav1.ListMeta{}, err
	}
	for _, item := range list.Items {
		o := example.DeepCopyObject()
		if err := json.Unmarshal(item, o); err != nil {
			return metav1.ListMeta{}, err
		}
		if err := each(o); err != nil {
			return metav1.ListMeta{}, err
		}
	}
	return list.Metadata, nil
}

package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	protobufcodec "k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

func podList(n int) *corev1.PodList {
	list := &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: "7", Continue: "more"}}
	for i := range n {
		list.Items = append(list.Items, corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("web-", i), Labels: map[string]string{"app": strings.Repeat("x", i)}},
			Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}}},
		})
	}
	return list
}

func encodings(t testing.TB, list runtime.Object) map[string][]byte {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	var proto bytes.Buffer
	if err := protobufcodec.NewSerializer(scheme, scheme).Encode(list, &proto); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"protobuf": proto.Bytes(), "JSON": text}
}

// A list is read as the API's own decoder reads it, object by object.
func TestReadList(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 1000} {
		want := podList(n)
		for encoding, b := range encodings(t, want) {
			got := &corev1.PodList{TypeMeta: want.TypeMeta}
			var err error
			got.ListMeta, err = readList(bytes.NewReader(b), &corev1.Pod{}, func(o runtime.Object) error {
				got.Items = append(got.Items, *o.(*corev1.Pod))
				return nil
			})
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s of %d: got %d, %+v, %v", encoding, n, len(got.Items), got.ListMeta, err)
			}
			if n == 1000 {
				continue
			}
			// One that is cut short is none.
			for cut := range len(b) {
				if _, err := readList(bytes.NewReader(b[:cut]), &corev1.Pod{}, func(runtime.Object) error { return nil }); err == nil && !whole(b, cut) {
					t.Errorf("%s of %d: no error after %d of %d bytes", encoding, n, cut, len(b))
				}
			}
		}
	}
}

// whole says whether the list is complete after so many bytes: what follows may be fields
// of the envelope that say nothing.
func whole(b []byte, cut int) bool {
	end := bytes.LastIndex(b, []byte("10.1.0.1"))
	return string(b[:4]) == protobufMagic && cut >= len(b)-8 && cut > end
}

func FuzzReadList(f *testing.F) {
	for _, b := range encodings(f, podList(3)) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = readList(bytes.NewReader(b), &corev1.Pod{}, func(runtime.Object) error { return nil })
	})
}

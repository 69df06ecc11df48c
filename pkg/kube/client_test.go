package kube

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"testing"

	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Each field of the status is in the patch, empty ones as null or zero, which takes away what
// the API server has. Some are flock-controller's alone to write.
func TestPatchStatusHasEveryField(t *testing.T) {
	t.Parallel()
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { body, _ = io.ReadAll(r.Body) }))
	defer server.Close()
	client, err := NewClient(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	client.PatchStatus(t.Context(), "node1", v1alpha1.NodeConfigStatus{ObservedGeneration: 7, Passwords: &v1alpha1.SealedPasswords{}})
	var patch struct{ Status map[string]any }
	if err := json.Unmarshal(body, &patch); err != nil {
		t.Fatal(err)
	}
	// What JSON calls the fields is asked of encoding/json, with each of them set.
	full := reflect.New(reflect.TypeFor[v1alpha1.NodeConfigStatus]()).Elem()
	for field, value := range full.Fields() {
		switch value.Kind() {
		case reflect.Slice:
			value.Set(reflect.MakeSlice(field.Type, 1, 1))
		case reflect.String:
			value.SetString("x")
		case reflect.Int64, reflect.Int32, reflect.Int:
			value.SetInt(1)
		case reflect.Bool:
			value.SetBool(true)
		case reflect.Pointer:
			value.Set(reflect.New(field.Type.Elem()))
		case reflect.Map:
			value.Set(reflect.MakeMap(field.Type))
			value.SetMapIndex(reflect.Zero(field.Type.Key()), reflect.Zero(field.Type.Elem()))
		}
	}
	text, err := json.Marshal(full.Interface())
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	if len(fields) != full.NumField() {
		t.Fatalf("JSON has %d fields of %d: let this test set all kinds", len(fields), full.NumField())
	}
	for _, field := range []string{"passwords", "templateTurn", "podCIDROverlaps"} { // flock-controller's
		delete(fields, field)
	}
	want, got := slices.Sorted(maps.Keys(fields)), slices.Sorted(maps.Keys(patch.Status))
	if !slices.Equal(got, want) {
		t.Errorf("fields %v, want %v", got, want)
	}
	if patch.Status["observedGeneration"] != 7.0 || patch.Status["sessions"] != nil {
		t.Errorf("patch %s", body)
	}
}

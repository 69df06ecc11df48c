package policy

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

func TestAwaitEvent(t *testing.T) {
	for watch, want := range map[string]string{
		"": "",
		`{"type":"ADDED","object":{"kind":"CustomResourceDefinition","metadata":{"name":"x"},"status":{"conditions":[]}}}`:              "",
		`{"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"Timeout: Too large resource version: 2, current: 1"}}`: "Too large",
		`{"type":`: "EOF",
	} {
		err := awaitEvent(strings.NewReader(watch))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", watch, err, want)
		}
	}
}

// The kind is asked for again as soon as its CRD comes.
func TestAwaitCRD(t *testing.T) {
	t.Parallel()
	come, asked := make(chan struct{}), make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path + "?" + r.URL.RawQuery
		w.(http.Flusher).Flush()
		<-come
		w.Write([]byte(`{"type":"ADDED","object":{"kind":"CustomResourceDefinition","metadata":{"name":"x"}}}` + "\n"))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer server.Close()
	s, err := NewSources(&rest.Config{Host: server.URL}, "node1")
	if err != nil {
		t.Fatal(err)
	}
	returned := make(chan struct{})
	go func() {
		s.ClusterNetworkPolicies.(awaiter).await(t.Context())
		close(returned)
	}()
	url := <-asked
	for _, part := range []string{"/customresourcedefinitions?", "watch=true", "resourceVersion=0", "metadata.name%3Dclusternetworkpolicies.policy.networking.k8s.io"} {
		if !strings.Contains(url, part) {
			t.Errorf("asked for %s, want %s in it", url, part)
		}
	}
	select {
	case <-returned:
		t.Error("it has not come yet")
	default:
	}
	close(come)
	<-returned
}

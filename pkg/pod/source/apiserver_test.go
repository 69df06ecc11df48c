package source

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/pod"
)

// fakeAPIServer serves pods and breaks in the ways an API server does. That a
// real one understands the requests is shown in a cluster.
type fakeAPIServer struct {
	t      *testing.T
	socket string
	server *http.Server

	mu     sync.Mutex // guards what follows
	pods   []*corev1.Pod
	refuse *apierrors.StatusError // the answer to every request
	gone   bool                   // the answer to the next watch: too old
	watch  chan metav1.WatchEvent // of the last watch
	asked  []string               // field selectors
}

func startFakeAPIServer(t *testing.T) *fakeAPIServer {
	a := &fakeAPIServer{t: t, socket: filepath.Join(t.TempDir(), "api.sock")}
	a.start()
	t.Cleanup(a.stop)
	return a
}

func (a *fakeAPIServer) start() {
	a.t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.socket})
	if err != nil {
		a.t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false) // connections are refused then, as by a machine
	a.server = &http.Server{Handler: a}
	go a.server.Serve(listener)
}

func (a *fakeAPIServer) stop() { a.server.Close() }

// client reaches the server over its socket.
func (a *fakeAPIServer) client() rest.Interface {
	a.t.Helper()
	c, err := kube.NewClient(&rest.Config{
		Host: "http://apiserver",
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", a.socket)
		},
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return c.Core()
}

func (a *fakeAPIServer) set(pods ...*corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods = pods
}

// say sends an event on the watch.
func (a *fakeAPIServer) say(kind string, p *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p.TypeMeta, p.ResourceVersion = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, "8"
	a.watch <- metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Object: p}}
}

// cut ends the watch, and answers the next requests with err.
func (a *fakeAPIServer) cut(err *apierrors.StatusError) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = err
	close(a.watch)
	a.watch = nil
}

func (a *fakeAPIServer) setRefuse(err *apierrors.StatusError) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = err
}

func (a *fakeAPIServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	answer := func(code int, object any) {
		if code != http.StatusOK {
			w.WriteHeader(code)
		}
		if err := json.NewEncoder(w).Encode(object); err != nil {
			a.t.Log(err)
		}
	}
	query := r.URL.Query()
	a.mu.Lock()
	refuse, pods := a.refuse, a.pods
	if refuse == nil && query.Get("watch") != "" && query.Get("sendInitialEvents") != "" {
		refuse = apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil) // it is older than 1.32
	}
	if refuse == nil && query.Get("watch") != "" && a.gone {
		refuse, a.gone = apierrors.NewResourceExpired("too old"), false
	}
	a.asked = append(a.asked, query.Get("fieldSelector"))
	a.mu.Unlock()

	switch name := strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/shop/pods/"); {
	case refuse != nil:
		why := refuse.ErrStatus
		why.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		answer(int(why.Code), why)
	case name != r.URL.Path:
		i := slices.IndexFunc(pods, func(p *corev1.Pod) bool { return p.Name == name })
		if i < 0 {
			answer(http.StatusNotFound, apierrors.NewNotFound(corev1.Resource("pods"), name).ErrStatus)
			return
		}
		answer(http.StatusOK, pods[i])
	case query.Get("watch") == "":
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: "7"}}
		for _, p := range pods {
			list.Items = append(list.Items, *p)
		}
		answer(http.StatusOK, list)
	default:
		a.mu.Lock()
		watch := make(chan metav1.WatchEvent, 10)
		a.watch = watch
		a.mu.Unlock()
		w.(http.Flusher).Flush()
		for {
			select {
			case e, ok := <-watch:
				if !ok {
					return
				}
				answer(http.StatusOK, e)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}
}

// expectWatched waits until the API server is watched.
func (a *fakeAPIServer) expectWatched() {
	a.t.Helper()
	nettest.Await(a.t, "a watch of the API server", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.watch != nil
	})
}

var unavailable = apierrors.NewForbidden(corev1.Resource("pods"), "", errors.New("not yet"))

func TestAPIServerWatch(t *testing.T) {
	a := startFakeAPIServer(t)
	a.set(apiPod("a", corev1.ConditionTrue, 0))
	w := startWatch(t, Config{API: a.client()})
	w.expect("+a Ready, synced")
	w.expectStatus(APIServer, "")
	a.expectWatched()
	a.say("ADDED", apiPod("b", corev1.ConditionFalse, 0))
	w.expect("+b NotReady")
	a.say("MODIFIED", apiPod("b", corev1.ConditionTrue, 5))
	w.expect("~b Ready")
	a.say("MODIFIED", apiPod("b", corev1.ConditionFalse, 1)) // by another clock
	w.expect("~b NotReady")
	a.say("DELETED", apiPod("a", corev1.ConditionTrue, 0))
	w.expect("-a")
	a.mu.Lock()
	defer a.mu.Unlock()
	if got := slices.Compact(a.asked); !slices.Equal(got, []string{"spec.nodeName=node1"}) {
		t.Errorf("asked for pods with field selectors %q, want only this node's", got)
	}
}

func TestAPIServerRefusesAtFirst(t *testing.T) {
	a := startFakeAPIServer(t)
	a.setRefuse(unavailable)
	w := startWatch(t, Config{API: a.client()})
	nettest.Await(t, "an error of the API server", func() bool { return w.local.Status().APIServer != nil })
	if s := w.local.Status(); s.Origin != None || !strings.Contains(s.APIServer.Error(), "not yet") {
		t.Errorf("status %+v, want no origin, and the API server's words", s)
	}
	a.setRefuse(nil)
	w.expect("synced")
}

func TestAPIServerCutsWatch(t *testing.T) {
	a := startFakeAPIServer(t)
	a.set(apiPod("a", corev1.ConditionTrue, 0))
	w := startWatch(t, Config{API: a.client()})
	w.expect("+a Ready, synced")
	a.expectWatched()
	a.cut(unavailable)
	nettest.Await(t, "origin None", func() bool { return w.local.Status().Origin == None })
	a.set(apiPod("b", corev1.ConditionTrue, 0))
	a.setRefuse(nil)
	w.expect("+b Ready, -a, synced")
	nettest.Await(t, "origin APIServer", func() bool { return w.local.Status().Origin == APIServer })
}

func TestAPIServerWatchGoesOn(t *testing.T) {
	a := startFakeAPIServer(t)
	a.set(apiPod("a", corev1.ConditionTrue, 0))
	w := startWatch(t, Config{API: a.client()})
	w.expect("+a Ready, synced")
	a.expectWatched()
	a.say("ADDED", apiPod("b", corev1.ConditionTrue, 0))
	w.expect("+b Ready")
	a.stop()
	nettest.Await(t, "origin None", func() bool { return w.local.Status().Origin == None })
	a.mu.Lock()
	a.watch = nil
	a.mu.Unlock()
	if err := os.Remove(a.socket); err != nil {
		t.Fatal(err)
	}
	a.start()
	nettest.Await(t, "origin APIServer", func() bool { return w.local.Status().Origin == APIServer })
	a.expectWatched()
	a.say("MODIFIED", apiPod("a", corev1.ConditionFalse, 1))
	w.expect("~a NotReady")
}

func TestAPIServerForgotWhereTheWatchWas(t *testing.T) {
	a := startFakeAPIServer(t)
	a.set(apiPod("a", corev1.ConditionTrue, 0))
	w := startWatch(t, Config{API: a.client()})
	w.expect("+a Ready, synced")
	a.expectWatched()
	a.mu.Lock()
	a.gone = true
	a.mu.Unlock()
	a.set(apiPod("a", corev1.ConditionFalse, 1))
	a.cut(nil)
	w.expect("~a NotReady, synced")
}

func TestAPIServerGet(t *testing.T) {
	a := startFakeAPIServer(t)
	mirror := apiPod("static-node1", corev1.ConditionTrue, 0)
	mirror.Annotations = map[string]string{mirrorAnnotation: "uid-static"}
	a.set(apiPod("a", corev1.ConditionTrue, 0), mirror)
	local, err := New(Config{Node: "node1", API: a.client()})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ref  pod.Ref
		uid  types.UID
		none bool
	}{
		{ref: pod.Ref{Namespace: "shop", Name: "a", UID: "uid-a"}, uid: "uid-a"},
		{ref: pod.Ref{Namespace: "shop", Name: "a", UID: ""}, uid: "uid-a"},
		{ref: pod.Ref{Namespace: "shop", Name: "a", UID: "uid-older"}, none: true},
		{ref: pod.Ref{Namespace: "shop", Name: "b", UID: "uid-b"}, none: true},
		{ref: pod.Ref{Namespace: "shop", Name: "static-node1", UID: "uid-static"}, uid: "uid-static"},
	} {
		p, err := local.Get(t.Context(), c.ref)
		if errors.Is(err, ErrNotFound) != c.none || !c.none && (err != nil || p.UID != c.uid) {
			t.Errorf("Get(%+v) = %+v, %v", c.ref, p, err)
		}
	}
	a.setRefuse(unavailable)
	if _, err := local.Get(t.Context(), pod.Ref{Namespace: "shop", Name: "a", UID: "uid-a"}); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Get from an API server that refuses returned %v, want an error that is not %v", err, ErrNotFound)
	}
}

package cni

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"flock.fritzlab.net/flock/pkg/pod"
)

// runtimeOf is a container runtime as far as CNI goes: libcni, the built plugin,
// and a list in which another plugin stands behind flock.
func runtimeOf(t *testing.T, cniVersion, socket, path string) (*libcni.CNIConfig, *libcni.NetworkConfigList) {
	t.Helper()
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{
		"cniVersion": %q, "name": "flock",
		"plugins": [
			{"type": "flock", "mtu": 1400, "agentSocket": %q},
			{"type": "chained", "capabilities": {"portMappings": true}}
		]}`, cniVersion, socket))
	if err != nil {
		t.Fatal(err)
	}
	return libcni.NewCNIConfigWithCacheDir([]string{path, linkSelf(t, "chained")}, t.TempDir(), nil), list
}

func TestRuntimeThroughAllVersions(t *testing.T) {
	t.Parallel()
	for _, cniVersion := range SupportedVersions {
		t.Run(cniVersion, func(t *testing.T) {
			t.Parallel()
			agent := &recorder{}
			agent.do = func(_ context.Context, c *Call) error {
				if c.Command == CommandCheck {
					return c.ComparePrevResult(sample())
				}
				return nil
			}
			cni, list := runtimeOf(t, cniVersion, serve(t, agent), pluginDir)
			netNS, ino := newNetNS(t)
			rt := &libcni.RuntimeConf{
				ContainerID: "c0ffee", NetNS: netNS, IfName: "eth0",
				Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web-0"}, {"K8S_POD_UID", "u-1"}},
			}
			ctx := t.Context()

			added, err := cni.AddNetworkList(ctx, list, rt)
			if err != nil {
				t.Fatal("ADD:", err)
			}
			if added.Version() != cniVersion {
				t.Errorf("ADD answered in version %s", added.Version())
			}
			got, err := types100.NewResultFromResult(added)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.IPs) != 2 || got.IPs[0].Address.String() != "2001:db8:100:1::a/128" || got.IPs[1].Gateway.String() != "169.254.1.1" {
				t.Errorf("addresses of ADD: %v", got.IPs)
			}
			if len(got.Interfaces) != 3 || got.Interfaces[1].Sandbox != netNS || got.Interfaces[2].Name != "ifb0" {
				t.Errorf("interfaces of ADD: %v", got.Interfaces)
			}
			call, gotIno := agent.last()
			if want := (pod.Ref{Namespace: "shop", Name: "web-0", UID: "u-1"}); call.Pod != want {
				t.Errorf("pod is %+v, want %+v", call.Pod, want)
			}
			if call.Attachment() != (AttachmentID{"c0ffee", "eth0"}) || call.NetNSPath != netNS || call.Config.MTU != 1400 {
				t.Errorf("call is %+v", call)
			}
			if gotIno != ino {
				t.Errorf("network namespace handed over is %d, want %d", gotIno, ino)
			}

			err = cni.CheckNetworkList(ctx, list, rt)
			if cniVersion == "0.3.1" {
				if !errors.Is(err, libcni.ErrorCheckNotSupp) {
					t.Errorf("CHECK: %v", err)
				}
			} else if err != nil {
				t.Error("CHECK:", err)
			} else if call, gotIno = agent.last(); call.Command != CommandCheck || gotIno != ino || len(call.Config.PrevResult.Interfaces) != 3 {
				t.Errorf("CHECK came as %+v", call)
			}

			if err := cni.DelNetworkList(ctx, list, rt); err != nil {
				t.Error("DEL:", err)
			}
			if call, gotIno = agent.last(); call.Command != CommandDel || gotIno != ino {
				t.Errorf("DEL came as %+v", call)
			}
			// Once more, with the namespace gone.
			rt.NetNS = "/run/netns/gone"
			if err := cni.DelNetworkList(ctx, list, rt); err != nil {
				t.Error("second DEL:", err)
			}
			if call, gotIno = agent.last(); call.NetNS != nil || gotIno != 0 || call.NetNSPath != rt.NetNS {
				t.Errorf("second DEL came as %+v", call)
			}
		})
	}
}

func TestRuntimeAsksStatusAndGC(t *testing.T) {
	t.Parallel()
	agent := &recorder{}
	var status error
	agent.status = func(context.Context) error { return status }
	cni, list := runtimeOf(t, "1.1.0", serve(t, agent), pluginDir)
	ctx := t.Context()

	if err := cni.GetStatusNetworkList(ctx, list); err != nil {
		t.Error("STATUS:", err)
	}
	for _, c := range []struct {
		err  error
		code Code
	}{
		{errors.New("no NodeConfig node1"), CodeNotAvailable},
		{NotAvailable("no NodeConfig node1"), CodeNotAvailable},
		{LimitedConnectivity("the routing daemon is away"), CodeLimitedConnectivity},
	} {
		status = c.err
		wantError(t, "STATUS", cni.GetStatusNetworkList(ctx, list), c.code, c.err.Error())
	}

	for _, valid := range [][]types.GCAttachment{
		{{ContainerID: "a", IfName: "eth0"}, {ContainerID: "b", IfName: "net1"}},
		{},
		nil,
	} {
		if err := cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
			t.Error("GC:", err)
		}
		want := make([]AttachmentID, 0)
		for _, v := range valid {
			want = append(want, AttachmentID(v))
		}
		if !slices.Equal(agent.valid, want) {
			t.Errorf("GC: valid is %v, want %v", agent.valid, want)
		}
	}
	// Without the list nothing may be taken to be stale.
	before := len(agent.calls)
	wantError(t, "GC", cni.GCNetworkList(ctx, list, nil), CodeInvalidConfig,
		"network configuration: cni.dev/valid-attachments is missing: GC needs the attachments to keep")
	if len(agent.calls) != before {
		t.Error("GC without a list reached the backend")
	}
}

func TestRuntimeSeesVersions(t *testing.T) {
	t.Parallel()
	cni, list := runtimeOf(t, "1.1.0", "/nonexistent", pluginDir)
	info, err := cni.GetVersionInfo(t.Context(), list.Plugins[0].Network.Type)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.SupportedVersions(); !reflect.DeepEqual(got, SupportedVersions) {
		t.Errorf("the plugin says it supports %v, the agent %v", got, SupportedVersions)
	}
}

func TestRuntimeSeesErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		code Code
		text string
	}{
		"coded":   {TryAgainLater("no NodeConfig %s: create one", "node1"), CodeTryAgainLater, "no NodeConfig node1: create one"},
		"wrapped": {fmt.Errorf("pod shop/web-0: %w", &Error{Code: CodeUnsupportedField, Msg: "no such pool", Details: "see docs"}), CodeUnsupportedField, "pod shop/web-0: no such pool; see docs"},
		"plain":   {errors.New("range 10.244.1.0/24 is full \"\n"), CodeFailed, "range 10.244.1.0/24 is full \"\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			agent := &recorder{
				add: func(context.Context, *Call) (*Result, error) { return nil, c.err },
				do:  func(context.Context, *Call) error { return c.err },
			}
			cni, list := runtimeOf(t, "1.0.0", serve(t, agent), pluginDir)
			netNS, _ := newNetNS(t)
			rt := &libcni.RuntimeConf{ContainerID: "c0ffee", NetNS: netNS, IfName: "eth0"}
			_, err := cni.AddNetworkList(t.Context(), list, rt)
			wantError(t, "ADD", err, c.code, c.text)
			list.Plugins = list.Plugins[:1]
			wantError(t, "DEL", cni.DelNetworkList(t.Context(), list, rt), c.code, c.text)
		})
	}
}

func TestRuntimeWithoutAgent(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "cni.sock")
	cni, list := runtimeOf(t, "1.1.0", socket, pluginDir)
	list.Plugins = list.Plugins[:1]
	netNS, _ := newNetNS(t)
	rt := &libcni.RuntimeConf{ContainerID: "c0ffee", NetNS: netNS, IfName: "eth0"}
	want := "flock's agent is not running on this node: " + socket + ": no such file or directory; " +
		"look at it: kubectl -n flock-system get pods -l app.kubernetes.io/name=flock -o wide, and kubectl -n flock-system logs -l app.kubernetes.io/name=flock -c agent"
	_, err := cni.AddNetworkList(t.Context(), list, rt)
	wantError(t, "ADD", err, CodeTryAgainLater, want)
	wantError(t, "DEL", cni.DelNetworkList(t.Context(), list, rt), CodeTryAgainLater, want)
	wantError(t, "STATUS", cni.GetStatusNetworkList(t.Context(), list), CodeNotAvailable, want)
	// The node recovers without anything but an agent.
	start(t, socket, &recorder{})
	if err := cni.DelNetworkList(t.Context(), list, rt); err != nil {
		t.Error("DEL with the agent back:", err)
	}
}

// wantError checks the code and the text that libcni found in the plugin's output.
func wantError(t *testing.T, what string, err error, code Code, text string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Errorf("%s: got %v (%T), want a CNI error", what, err, err)
		return
	}
	if Code(e.Code) != code || e.Error() != text {
		t.Errorf("%s:\n got %d %q\nwant %d %q", what, e.Code, e.Error(), code, text)
	}
}

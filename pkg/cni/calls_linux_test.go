package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/cni/wire"
)

func TestCallsThatAreRefused(t *testing.T) {
	t.Parallel()
	agent := &recorder{}
	socket := serve(t, agent)
	netNS, _ := newNetNS(t)
	own := fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
	uts := fmt.Sprintf("/proc/%d/ns/uts", os.Getpid())
	good := conf("1.1.0", socket, "")
	socketOnly := func(more string) string { return fmt.Sprintf(`{"agentSocket":%q%s}`, socket, more) }
	with := func(command string, replace ...string) []string {
		env := addEnv(command, netNS)
		for _, kv := range replace {
			name, _, _ := strings.Cut(kv, "=")
			for i := range env {
				if strings.HasPrefix(env[i], name+"=") {
					env[i] = kv
				}
			}
		}
		return env
	}
	for name, c := range map[string]struct {
		stdin string
		env   []string
		code  Code
		msg   string // a part of it
	}{
		"command unknown":         {good, with("UPDATE"), CodeInvalidEnvironment, `CNI_COMMAND="UPDATE": want ADD`},
		"container ID missing":    {good, with("ADD", "CNI_CONTAINERID="), CodeInvalidEnvironment, `CNI_CONTAINERID=""`},
		"DEL of no container":     {good, with("DEL", "CNI_CONTAINERID="), CodeInvalidEnvironment, `CNI_CONTAINERID=""`},
		"container ID is a path":  {good, with("DEL", "CNI_CONTAINERID=../etc"), CodeInvalidEnvironment, `CNI_CONTAINERID="../etc"`},
		"ifname missing":          {good, with("ADD", "CNI_IFNAME="), CodeInvalidEnvironment, `CNI_IFNAME=""`},
		"ifname too long":         {good, with("ADD", "CNI_IFNAME=sixteencharacter"), CodeInvalidEnvironment, "1 to 15"},
		"ifname with a slash":     {good, with("ADD", "CNI_IFNAME=a/b"), CodeInvalidEnvironment, `CNI_IFNAME="a/b"`},
		"ifname with a tab":       {good, with("ADD", "CNI_IFNAME=a\tb"), CodeInvalidEnvironment, `CNI_IFNAME="a\tb"`},
		"netns missing":           {good, with("ADD", "CNI_NETNS="), CodeInvalidEnvironment, "CNI_NETNS is not set"},
		"netns gone":              {good, with("ADD", "CNI_NETNS=/run/netns/gone"), CodeInvalidNetNS, `CNI_NETNS="/run/netns/gone": no such file`},
		"netns is a file":         {good, with("ADD", "CNI_NETNS=/dev/null"), CodeInvalidNetNS, "not a network namespace"},
		"netns is of other kind":  {good, with("ADD", "CNI_NETNS="+uts), CodeInvalidNetNS, "not a network namespace"},
		"netns is the node's own": {good, with("ADD", "CNI_NETNS="+own), CodeInvalidNetNS, "the node's own network namespace"},
		"args malformed":          {good, with("ADD", "CNI_ARGS=K8S_POD_NAME"), CodeInvalidEnvironment, "is not KEY=VALUE"},
		"args without namespace":  {good, with("ADD", "CNI_ARGS=K8S_POD_NAME=web-0"), CodeInvalidEnvironment, "want both"},
		"not JSON":                {socketOnly(`,"name":`), with("ADD"), CodeDecode, "not a JSON object"},
		"no version":              {socketOnly(`,"name":"flock"`), with("ADD"), CodeIncompatibleVersion, `cniVersion=""`},
		"version unknown":         {conf("0.2.0", socket, ""), with("ADD"), CodeIncompatibleVersion, `cniVersion="0.2.0": flock speaks 0.3.1, 0.4.0, 1.0.0, 1.1.0`},
		"version is no version":   {conf("1.x", socket, ""), with("ADD"), CodeIncompatibleVersion, `cniVersion="1.x"`},
		"network's name missing":  {socketOnly(`,"cniVersion":"1.1.0"`), with("ADD"), CodeInvalidConfig, `name=""`},
		"network's name a path":   {socketOnly(`,"cniVersion":"1.1.0","name":"a/b"`), with("ADD"), CodeInvalidConfig, `name="a/b"`},
		"name is a number":        {socketOnly(`,"cniVersion":"1.1.0","name":3`), with("ADD"), CodeInvalidConfig, "name: is a JSON number"},
		"mtu without IPv6":        {conf("1.1.0", socket, `,"mtu":1279`), with("ADD"), CodeInvalidConfig, "mtu=1279: want 1280 to 65535"},
		"runtime's mtu too large": {conf("1.1.0", socket, `,"runtimeConfig":{"mtu":65536}`), with("ADD"), CodeInvalidConfig, "runtimeConfig.mtu=65536"},
		"host port 0":             {conf("1.1.0", socket, `,"runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":80,"protocol":"tcp"}]}`), with("ADD"), CodeInvalidConfig, "portMappings: hostPort=0, containerPort=80: want 1 to 65535"},
		"host port of no IP":      {conf("1.1.0", socket, `,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"here"}]}`), with("ADD"), CodeInvalidConfig, `portMappings: ParseAddr("here")`},
		"host port of no range":   {conf("1.1.0", socket, `,"runtimeConfig":{"portMappings":[{"hostPort":65536,"containerPort":80,"protocol":"tcp"}]}`), with("ADD"), CodeInvalidConfig, "portMappings.hostPort: is a JSON number 65536, want uint16"},
		"host port of ICMP":       {conf("1.1.0", socket, `,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"icmp"}]}`), with("ADD"), CodeInvalidConfig, `hostPort=8080: protocol="icmp": want tcp, udp or sctp`},
		"runtimeConfig a word":    {conf("1.1.0", socket, `,"runtimeConfig":"x"`), with("ADD"), CodeInvalidConfig, "runtimeConfig: is a JSON string, want object"},
		"STATUS of a bad mtu":     {conf("1.1.0", socket, `,"mtu":12`), with("STATUS"), CodeInvalidConfig, "mtu=12"},
		"mtu is a word":           {conf("1.1.0", socket, `,"mtu":"big"`), with("ADD"), CodeInvalidConfig, "mtu: is a JSON string"},
		"not the first plugin":    {conf("1.1.0", socket, `,"prevResult":{"cniVersion":"1.1.0"}`), with("ADD"), CodeInvalidConfig, "must be the first"},
		"prevResult malformed":    {conf("1.1.0", socket, `,"prevResult":{"cniVersion":"1.1.0","ips":3}`), with("CHECK"), CodeDecode, "prevResult"},
		"prevResult of no spec":   {conf("1.1.0", socket, `,"prevResult":{"cniVersion":"9.0.0"}`), with("CHECK"), CodeDecode, "prevResult"},
		"prevResult with nulls":   {conf("1.1.0", socket, `,"prevResult":{"cniVersion":"0.4.0","interfaces":[null]}`), with("CHECK"), CodeDecode, "prevResult: null in a list"},
		"CHECK without it":        {good, with("CHECK"), CodeInvalidConfig, "prevResult is missing"},
		"CHECK before 0.4.0":      {conf("0.3.1", socket, ""), with("CHECK"), CodeIncompatibleVersion, "needs cniVersion 0.4.0"},
		"GC before 1.1.0":         {conf("1.0.0", socket, ""), with("GC"), CodeIncompatibleVersion, "needs cniVersion 1.1.0"},
		"STATUS before 1.1.0":     {conf("0.4.0", socket, ""), with("STATUS"), CodeIncompatibleVersion, "needs cniVersion 1.1.0"},
		"GC with a bad ID":        {conf("1.1.0", socket, `,"cni.dev/valid-attachments":[{"containerID":"/","ifname":"eth0"}]`), with("GC"), CodeInvalidConfig, `containerID="/"`},
		"GC with a wrong type":    {conf("1.1.0", socket, `,"cni.dev/valid-attachments":{}`), with("GC"), CodeInvalidConfig, "cni.dev/valid-attachments"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := runToError(t, pluginDir, c.stdin, c.env...)
			if e.Code != c.code || !strings.Contains(e.Msg, c.msg) {
				t.Errorf("got %d %q, want %d and %q in the text", e.Code, e.Msg, c.code, c.msg)
			}
		})
	}
	t.Cleanup(func() {
		if call, _ := agent.last(); call != nil {
			t.Errorf("the backend was called: %+v", call)
		}
	})
}

// DEL must succeed for what is gone, whatever the path leads to by now.
func TestDelWithoutNamespace(t *testing.T) {
	t.Parallel()
	agent := &recorder{}
	socket := serve(t, agent)
	for name, netNS := range map[string]string{
		"none":           "",
		"gone":           "/run/netns/gone",
		"left-over file": "/dev/null",
		"node's own":     fmt.Sprintf("/proc/%d/ns/net", os.Getpid()),
	} {
		out, exit := run(t.Context(), t, pluginDir, conf("1.1.0", socket, ""), addEnv("DEL", netNS)...)
		if exit != 0 || out != "" {
			t.Errorf("%s: exit code %d, printed %q", name, exit, out)
		}
		if call, _ := agent.last(); call == nil || call.NetNS != nil {
			t.Errorf("%s: came as %+v", name, call)
		}
	}
}

func TestPanicIsAnswered(t *testing.T) {
	t.Parallel()
	agent := &recorder{add: func(context.Context, *Call) (*Result, error) { panic("index out of range") }}
	socket := serve(t, agent)
	netNS, _ := newNetNS(t)
	for range 2 { // the second finds the container free again
		e := runToError(t, pluginDir, conf("0.4.0", socket, ""), addEnv("ADD", netNS)...)
		if e.Code != CodeInternal || !strings.Contains(e.Msg, "index out of range") || e.CNIVersion != "0.4.0" {
			t.Errorf("got %+v", e)
		}
	}
	if _, exit := run(t.Context(), t, pluginDir, conf("1.1.0", socket, ""), addEnv("DEL", netNS)...); exit != 0 {
		t.Error("DEL after a panic failed")
	}
}

func TestRuntimeThatGivesUpEndsTheCall(t *testing.T) {
	t.Parallel()
	began, ended := make(chan struct{}), make(chan error, 1)
	agent := &recorder{add: func(ctx context.Context, _ *Call) (*Result, error) {
		close(began)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil, ctx.Err()
	}}
	socket := serve(t, agent)
	netNS, _ := newNetNS(t)
	runtime, giveUp := context.WithCancel(t.Context())
	go func() { <-began; giveUp() }()
	run(runtime, t, pluginDir, conf("1.1.0", socket, ""), addEnv("ADD", netNS)...)
	select {
	case err := <-ended:
		if err == nil || err.Error() != "the runtime gave up waiting" {
			t.Errorf("context ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the call went on without a runtime")
	}
}

// A DEL that follows an ADD of which the runtime gave up must not overtake it.
func TestCallsOfOneContainerTakeTurns(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var order []string
	note := func(s string) { mu.Lock(); order = append(order, s); mu.Unlock() }
	addRuns, otherDone := make(chan struct{}), make(chan struct{})
	agent := &recorder{
		add: func(context.Context, *Call) (*Result, error) {
			note("add begins")
			close(addRuns)
			<-otherDone
			note("add ends")
			return sample(), nil
		},
		do: func(_ context.Context, c *Call) error {
			note("del " + c.ContainerID)
			if c.ContainerID == "other" {
				close(otherDone)
			}
			return nil
		},
	}
	socket := serve(t, agent)
	netNS, _ := newNetNS(t)
	config := conf("1.1.0", socket, "")
	var calls sync.WaitGroup
	calls.Go(func() { run(t.Context(), t, pluginDir, config, addEnv("ADD", netNS)...) })
	<-addRuns
	calls.Go(func() { run(t.Context(), t, pluginDir, config, addEnv("DEL", netNS)...) })
	calls.Go(func() {
		env := append(addEnv("DEL", netNS), "CNI_CONTAINERID=other")
		run(t.Context(), t, pluginDir, config, env...)
	})
	calls.Wait()
	if got := strings.Join(order, ", "); got != "add begins, del other, add ends, del c0ffee" {
		t.Error("order:", got)
	}
}

func TestLongConfigurations(t *testing.T) {
	t.Parallel()
	agent := &recorder{}
	socket := serve(t, agent)
	netNS, _ := newNetNS(t)
	padded := func(n int) string {
		c := conf("1.1.0", socket, `,"pad":""`)
		return strings.Replace(c, `"pad":"`, `"pad":"`+strings.Repeat("x", n-len(c)), 1)
	}
	// What the header and the variables take of a message, more or less.
	const others = 1024
	long := padded(wire.MaxMessage - others)
	if out, exit := run(t.Context(), t, pluginDir, long, addEnv("ADD", netNS)...); exit != 0 {
		t.Errorf("%d bytes: %s", len(long), out)
	} else if call, _ := agent.last(); string(call.Config.Raw) != long {
		t.Error("the configuration did not arrive as it was sent")
	}
	for _, n := range []int{wire.MaxMessage - 10, wire.MaxMessage, wire.MaxMessage + 1, 4 * wire.MaxMessage} {
		e := runToError(t, pluginDir, padded(n), addEnv("ADD", netNS)...)
		if e.Code != CodeInvalidConfig || !strings.Contains(e.Msg, "bytes or more; flock takes 196607") {
			t.Errorf("%d bytes: got %+v", n, e)
		}
	}
}

func TestAnswerThatIsTooLong(t *testing.T) {
	t.Parallel()
	socket := serve(t, &recorder{add: func(context.Context, *Call) (*Result, error) {
		return nil, errors.New(strings.Repeat("x", wire.MaxMessage))
	}})
	netNS, _ := newNetNS(t)
	e := runToError(t, pluginDir, conf("1.1.0", socket, ""), addEnv("ADD", netNS)...)
	if e.Code != CodeInternal || !strings.Contains(e.Msg, "flock's answer has 1966") {
		t.Errorf("got %+v", e)
	}
}

// The agent must not keep files of calls that are over.
func TestFilesAreClosed(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cni.sock")
	stop := start(t, socket, &recorder{})
	netNS, _ := newNetNS(t)
	before := openFiles(t)
	for range 5 {
		run(t.Context(), t, pluginDir, conf("1.1.0", socket, ""), addEnv("ADD", netNS)...)
		run(t.Context(), t, pluginDir, conf("1.1.0", socket, ""), addEnv("ADD", "/dev/null")...)
		run(t.Context(), t, pluginDir, fmt.Sprintf(`{"agentSocket":%q,`, socket), addEnv("ADD", netNS)...)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are open, %d were before", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

package cni

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/cni/wire"
)

// strict is a Backend that holds the package to what it promises.
type strict struct{ t *testing.T }

func (s strict) Add(_ context.Context, c *Call) (*Result, error) { s.check(c); return sample(), nil }
func (s strict) Del(_ context.Context, c *Call) error            { s.check(c); return nil }
func (s strict) Status(context.Context) error                    { return nil }

func (s strict) Check(_ context.Context, c *Call) error {
	s.check(c)
	return c.ComparePrevResult(sample())
}

func (s strict) GC(_ context.Context, c *Call, valid []AttachmentID) error {
	if valid == nil {
		s.t.Errorf("GC without a list: %s", c.Config.Raw)
	}
	return nil
}

func (s strict) check(c *Call) {
	missing := (c.IfName == "" || c.Config.Name == "") && c.Command != CommandDel
	if strings.ContainsAny(c.ContainerID+c.IfName+c.Config.Name, "/ \n") || c.ContainerID == "" || missing {
		s.t.Errorf("call is %+v", c)
	}
	if c.Command != CommandDel && c.NetNS == nil {
		s.t.Errorf("%s without a namespace", c.Command)
	}
}

// FuzzAnswer feeds any message to the agent's side: it must answer with one
// JSON object, or nothing and success.
func FuzzAnswer(f *testing.F) {
	env := []string{"CNI_COMMAND=CHECK", "CNI_CONTAINERID=c0ffee", "CNI_IFNAME=eth0", "CNI_NETNS=/proc/1/ns/net", "CNI_ARGS=K8S_POD_NAMESPACE=a;K8S_POD_NAME=b"}
	prev, err := sample().json("1.1.0", "/run/netns/a")
	if err != nil {
		f.Fatal(err)
	}
	for _, command := range []string{CommandAdd, CommandDel, CommandCheck, CommandGC, CommandStatus} {
		env[0] = "CNI_COMMAND=" + command
		f.Add(wire.AppendRequest(nil, wire.Request{Env: env, Stdin: []byte(`{"cniVersion":"1.1.0","name":"flock","mtu":1500,"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}`)}))
		f.Add(wire.AppendRequest(nil, wire.Request{Env: env, Stdin: []byte(`{"cniVersion":"0.4.0","name":"flock","prevResult":` + string(prev) + `}`)}))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		r, err := wire.ParseRequest(message)
		if err != nil {
			return
		}
		d := &dispatcher{backend: strict{t}, log: slog.New(slog.DiscardHandler), vetNetNS: func(*os.File) error { return nil }}
		answer := d.answer(t.Context(), r, os.Stdin)
		if answer.Exit == 0 && len(answer.Output) == 0 {
			return
		}
		var object struct {
			CNIVersion string `json:"cniVersion"`
			Code       Code   `json:"code"`
		}
		if err := json.Unmarshal(answer.Output, &object); err != nil {
			t.Fatalf("answered %q: %v", answer.Output, err)
		}
		if !isVersion(object.CNIVersion) || (answer.Exit == 0) != (object.Code == 0) || object.Code == CodeInternal {
			t.Errorf("answered %d %s", answer.Exit, answer.Output)
		}
	})
}

package cni

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/cni/wire"
)

// brokenValues are values of which each is wrong for most fields.
var brokenValues = []string{`null`, `""`, `"a/b"`, `"9.9.9"`, `-1`, `1.5`, `1e99`, `true`, `[]`, `[null]`, `{}`, `{"mtu":"x"}`, `{"cniVersion":3}`, `{"cniVersion":"1.1.0","ips":[null]}`}

// fullDel is what a runtime passes for DEL, with every field that it may have.
func fullDel(t *testing.T) (config map[string]json.RawMessage, env map[string]string) {
	t.Helper()
	prev, err := sample().json("1.1.0", "/run/netns/a")
	if err != nil {
		t.Fatal(err)
	}
	config = map[string]json.RawMessage{
		"cniVersion": []byte(`"1.1.0"`), "name": []byte(`"flock"`), "type": []byte(`"flock"`), "mtu": []byte(`1500`),
		"runtimeConfig": []byte(`{"mtu":1400,"portMappings":[]}`), "prevResult": prev, "args": []byte(`{}`),
		"capabilities": []byte(`{"portMappings":true}`), "dns": []byte(`{}`), "ipam": []byte(`{}`),
		"cni.dev/attachments": []byte(`[]`), "cni.dev/valid-attachments": []byte(`[]`),
	}
	env = map[string]string{
		"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c0ffee", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/a",
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1", "CNI_PATH": "/opt/cni/bin",
	}
	return config, env
}

// A runtime repeats a DEL that is refused for ever, and its pod never ends. So whatever
// single part of it is broken, the agent detaches what the rest names.
func TestDelWithABrokenPart(t *testing.T) {
	t.Parallel()
	del := func(t *testing.T, stdin []byte, env map[string]string) (*Call, wire.Response) {
		agent := &recorder{}
		d := &dispatcher{backend: agent, log: slog.New(slog.DiscardHandler), vetNetNS: func(*os.File) error { return fmt.Errorf("not a network namespace") }}
		r := wire.Request{Stdin: stdin, NetNSErrno: 2}
		for k, v := range env {
			r.Env = append(r.Env, k+"="+v)
		}
		answer := d.answer(t.Context(), r, nil)
		call, _ := agent.last()
		return call, answer
	}
	wants := func(t *testing.T, what string, call *Call, answer wire.Response, ifName, network string) {
		t.Helper()
		if answer.Exit != 0 || len(answer.Output) != 0 {
			t.Errorf("%s: answer %d %s", what, answer.Exit, answer.Output)
		} else if call == nil || call.Command != CommandDel || call.ContainerID != "c0ffee" || call.IfName != ifName || call.Config.Name != network {
			t.Errorf("%s: came as %+v, want interface %q of network %q", what, call, ifName, network)
		}
	}
	full, env := fullDel(t)
	for field := range full {
		for _, value := range append([]string{""}, brokenValues...) {
			config, _ := fullDel(t)
			config[field] = json.RawMessage(value)
			if value == "" {
				delete(config, field)
			}
			stdin, err := json.Marshal(config)
			if err != nil {
				t.Fatal(err)
			}
			network := "flock"
			if field == "name" && !strings.Contains(value, "9.9.9") {
				network = ""
			} else if field == "name" {
				network = "9.9.9"
			}
			call, answer := del(t, stdin, env)
			wants(t, fmt.Sprintf("field %s = %s", field, value), call, answer, "eth0", network)
		}
	}
	stdin, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range []string{"", "null", "3", `"x"`, "[]", "{", string(stdin[:len(stdin)/2]), "\x00\xff"} {
		call, answer := del(t, []byte(broken), env)
		wants(t, fmt.Sprintf("standard input %.20q", broken), call, answer, "eth0", "")
	}
	for name := range env {
		for _, value := range []string{"", "a/b\n;=", "../..", strings.Repeat("x", 300)} {
			_, broken := fullDel(t)
			broken[name] = value
			call, answer := del(t, stdin, broken)
			what := fmt.Sprintf("%s=%.20q", name, value)
			switch ifName := "eth0"; {
			case name == "CNI_COMMAND" || name == "CNI_CONTAINERID" && !validName(value):
				if answer.Exit != 1 || !strings.Contains(string(answer.Output), `"code":4`) || call != nil {
					t.Errorf("%s: answer %d %s, call %+v", what, answer.Exit, answer.Output, call)
				}
			case name == "CNI_CONTAINERID":
				if answer.Exit != 0 || call == nil || call.ContainerID != value {
					t.Errorf("%s: answer %d %s, call %+v", what, answer.Exit, answer.Output, call)
				}
			case name == "CNI_IFNAME":
				ifName = ""
				fallthrough
			default:
				wants(t, what, call, answer, ifName, "flock")
			}
		}
	}
}

// A GC that is broken in a part that it does not need keeps to what it needs.
func TestGCWithABrokenPart(t *testing.T) {
	t.Parallel()
	for _, field := range []string{"mtu", "runtimeConfig", "prevResult", "type", "args", "dns", "ipam", "capabilities"} {
		for _, value := range brokenValues {
			config, _ := fullDel(t)
			config[field] = json.RawMessage(value)
			stdin, err := json.Marshal(config)
			if err != nil {
				t.Fatal(err)
			}
			d := &dispatcher{backend: &recorder{}, log: slog.New(slog.DiscardHandler)}
			if answer := d.answer(t.Context(), wire.Request{Stdin: stdin, Env: []string{"CNI_COMMAND=GC"}}, nil); answer.Exit != 0 {
				t.Errorf("%s = %s: answer %d %s", field, value, answer.Exit, answer.Output)
			}
		}
	}
}

// A configuration that is too long for a message refuses an ADD, but no DEL.
func TestDelWithTooLongAConfiguration(t *testing.T) {
	t.Parallel()
	agent := &recorder{}
	socket := serve(t, agent)
	for _, n := range []int{wire.MaxMessage - 100, wire.MaxMessage, 4 * wire.MaxMessage} {
		long := conf("1.1.0", socket, `,"pad":"`+strings.Repeat("x", n)+`"`)
		if out, exit := run(t.Context(), t, pluginDir, long, addEnv("DEL", "")...); exit != 0 || out != "" {
			t.Errorf("%d bytes: exit code %d, printed %s", n, exit, out)
		}
		if call, _ := agent.last(); call == nil || call.Command != CommandDel || call.Config.Name != "" {
			t.Errorf("%d bytes: came as %+v", n, call)
		}
	}
}

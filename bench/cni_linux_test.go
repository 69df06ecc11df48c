package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	signals "os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// TestMain makes this program a CNI plugin too, when a runtime starts it as one, and the process
// of a benchmark on a node.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == NodeCommand {
		ctx, _ := signals.NotifyContext(context.Background(), os.Interrupt)
		if err := ServeNode(ctx, os.Args[2], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv("CNI_COMMAND") != "" {
		if err := fakePlugin(); err != nil {
			fmt.Printf(`{"cniVersion":"1.0.0","code":100,"msg":%q}`, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fakeConf is the network of a plugin that makes a link in the host's namespace,
// and deletes it a while after it has answered a DEL.
type fakeConf struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	Type       string   `json:"type"`
	Addresses  []string `json:"addresses"`
	Link       string   `json:"link"`
	Log        string   `json:"log"`
	FailAdd    bool     `json:"failAdd"`
	FailDel    bool     `json:"failDel"`
}

// linger is how long the fake's link stays after DEL.
const linger = 30 * time.Millisecond

func fakePlugin() error {
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var c fakeConf
	if err := json.Unmarshal(in, &c); err != nil {
		return err
	}
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	pod, err := os.Readlink(os.Getenv("CNI_NETNS"))
	if err != nil {
		return err
	}
	log, err := os.OpenFile(c.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintln(log, c.Name, os.Getenv("CNI_COMMAND"), host, pod)

	if id := os.Getenv("CNI_CONTAINERID"); c.Link == "" { // one for each pod
		c.Link = "f" + id[len(id)-8:]
	}
	switch os.Getenv("CNI_COMMAND") {
	case "ADD":
		if c.FailAdd {
			return fmt.Errorf("no ADD today")
		}
		if out, err := exec.Command("ip", "link", "add", c.Link, "type", "bridge").CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		var ips []string
		for _, a := range c.Addresses {
			ips = append(ips, fmt.Sprintf(`{"address":%q,"interface":1}`, a))
		}
		fmt.Printf(`{"cniVersion":"1.0.0","interfaces":[{"name":%q},{"name":"eth0","sandbox":"x"}],"ips":[%s]}`, c.Link, strings.Join(ips, ","))
	case "DEL":
		if c.FailDel {
			return fmt.Errorf("no DEL today")
		}
		return exec.Command("sh", "-c", fmt.Sprintf("sleep %f; ip link del %s", linger.Seconds(), c.Link)).Start()
	}
	return nil
}

// fake is a runtime for a fake network with a namespace of its own as the host.
func fake(t *testing.T, c fakeConf, want []int) runtimeOf {
	t.Helper()
	bin, self := t.TempDir(), must(os.Executable())
	if err := os.Symlink(self, filepath.Join(bin, "fake")); err != nil {
		t.Fatal(err)
	}
	c.CNIVersion, c.Type = "1.0.0", "fake"
	plugin := must(json.Marshal(c))
	list := must(libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":%q,"plugins":[%s]}`, c.Name, plugin)))
	host := must(newNetNS())
	t.Cleanup(func() { host.Close() })
	return runtimeOf{name: c.Name, cni: libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil), list: list, host: host, want: want}
}

func inode(n *netNS) string { return must(os.Readlink(n.Path())) }

func TestCompare(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	a := fake(t, fakeConf{Name: "a", Addresses: []string{"2001:db8::7/128", "10.1.2.3/32"}, Link: "flock0", Log: log}, []int{128, 32})
	b := fake(t, fakeConf{Name: "b", Addresses: []string{"10.255.0.2/16"}, Link: "veth0", Log: log}, []int{16})
	m, err := compare(t.Context(), a, b, 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, samples := range [][]time.Duration{m.Add, m.Del, m.Settled, m.BaseAdd, m.BaseDel, m.BaseSettled} {
		if len(samples) != 3 || slices.Min(samples) <= 0 {
			t.Errorf("samples %v: want 3", samples)
		}
	}
	for i := range m.Settled {
		if m.Settled[i] < linger || m.Settled[i] < m.Del[i] {
			t.Errorf("round %d: DEL took %s, its link was gone after %s, but goes %s later", i, m.Del[i], m.Settled[i], linger)
		}
	}

	// Turn by turn, each in its own host, each pod in a namespace of its own.
	lines := strings.Split(strings.TrimSpace(string(must(os.ReadFile(log)))), "\n")
	var order []string
	pods := map[string]int{}
	hosts := map[string]string{"a": inode(a.host), "b": inode(b.host)}
	for _, line := range lines {
		f := strings.Fields(line)
		order = append(order, f[0]+" "+f[1])
		if f[2] != hosts[f[0]] {
			t.Errorf("%s: ran in %s, want %s", line, f[2], hosts[f[0]])
		}
		pods[f[3]]++
	}
	turn := []string{"a ADD", "a DEL", "b ADD", "b DEL"}
	if want := slices.Repeat(turn, 4); !slices.Equal(order, want) {
		t.Errorf("order %q, want %q", order, want)
	}
	if len(pods) != 8 {
		t.Errorf("%d pods' namespaces, want 8: %v", len(pods), pods)
	}
	names := []string{}
	for _, r := range m.results() {
		names = append(names, r.Name, r.Baseline.Name)
	}
	if got, want := strings.Join(names, " "), "cni.add.dual.serial ptp+host-local.add.ipv4.serial cni.del.dual.serial ptp+host-local.del.ipv4.serial cni.del-settled.dual.serial ptp+host-local.del-settled.ipv4.serial"; got != want {
		t.Errorf("results %s, want %s", got, want)
	}
}

// A bench that measures something else than it says is an error, and whatever
// goes wrong, a pod that was added is deleted.
func TestCompareRefuses(t *testing.T) {
	both := []string{"2001:db8::7/128", "10.1.2.3/32"}
	for _, tc := range []struct {
		name string
		conf fakeConf
		want string
		runs string
	}{
		{"one family", fakeConf{Addresses: both[:1]}, "is the other family switched off", "ADD DEL"},
		{"ADD fails", fakeConf{FailAdd: true}, "no ADD today", "ADD DEL"},
		{"DEL fails", fakeConf{Addresses: both, FailDel: true}, "no DEL today", "ADD DEL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			tc.conf.Name, tc.conf.Link, tc.conf.Log = "a", "flock0", log
			a := fake(t, tc.conf, []int{128, 32})
			_, err := compare(t.Context(), a, a, 0, 1)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "pod 0 of network a: ") {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			var runs []string
			for line := range strings.Lines(string(must(os.ReadFile(log)))) {
				runs = append(runs, strings.Fields(line)[1])
			}
			if got := strings.Join(runs, " "); got != tc.runs {
				t.Errorf("ran %s, want %s", got, tc.runs)
			}
		})
	}

	t.Run("interrupted", func(t *testing.T) {
		log := filepath.Join(t.TempDir(), "log")
		a := fake(t, fakeConf{Name: "a", Link: "flock0", Log: log, Addresses: both}, []int{128, 32})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := compare(ctx, a, a, 0, 1); err == nil {
			t.Error("went on")
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

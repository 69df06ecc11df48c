package flockctl

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatch: what changes is printed, and elsewhere than on a terminal nothing twice.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*watchEvery+time.Second)
		defer cancel()
		var out bytes.Buffer
		s := &session{out: &out}
		looks := 0
		err := s.repeat(ctx, func(s *session) error {
			looks++
			if looks == 5 {
				return fmt.Errorf("no answer")
			}
			fmt.Fprintf(s.out, "state %d\n", looks/3)
			return nil
		})
		if err != nil || looks != 6 {
			t.Errorf("%d looks: %v", looks, err)
		}
		if want := "state 0\nstate 1\nno answer\nstate 2\n"; out.String() != want {
			t.Errorf("printed %q, want %q", out.String(), want)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var out, remarks bytes.Buffer
		s := &session{out: &out, remarks: &remarks, output: "json"}
		_ = s.repeat(ctx, func(s *session) error {
			fmt.Fprintln(s.out, "{}")
			fmt.Fprintln(s.remarks, "a remark")
			return fmt.Errorf("no answer")
		})
		if out.String() != "{}\n" || remarks.String() != "a remark\nno answer\n" {
			t.Errorf("a program that watches reads %q, beside it %q", out.String(), remarks.String())
		}
	})
}

// TestColours: they are for terminals alone.
func TestColours(t *testing.T) {
	var out bytes.Buffer
	if isTerminal(&out) {
		t.Error("a buffer is a terminal")
	}
	all := overall{Nodes: ratio{1, 1}, Problems: []problem{{"node1", "broken"}}}
	(&session{}).printOverall(&out, all)
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("escapes where there is no terminal: %q", out.String())
	}
	out.Reset()
	(&session{colour: true}).printOverall(&out, all)
	if !strings.Contains(out.String(), "\x1b[31mWrong (1)\x1b[0m") {
		t.Errorf("no colours on a terminal: %q", out.String())
	}
}

// TestShellsTakeTheScripts: bash loads the script and completes with it, also an address, whose
// colons break words for bash.
func TestShellsTakeTheScripts(t *testing.T) {
	script := completionScripts["bash"] + `
flockctl() { case "$1 $2 $3 $4" in
  "complete -- node n") printf 'node1\nnode2\n';;
  "complete -- anycast 2001:db8:5") printf '2001:db8:53::53\n';;
  "complete -- pool ") printf 'dns\n';;
esac }
for COMP_LINE in 'flockctl node n' 'flockctl anycast 2001:db8:5' 'flockctl pool ' 'flockctl render -f '; do
  COMP_POINT=${#COMP_LINE} COMPREPLY=()
  _flockctl
  printf '%s:%s\n' "${#COMPREPLY[@]}" "${COMPREPLY[*]}"
done
complete -p flockctl
`
	out, err := exec.Command("bash", "-c", script).CombinedOutput()
	want := "2:node1 node2\n1:53::53\n1:dns\n0:\ncomplete -o default -F _flockctl flockctl\n"
	if err != nil || string(out) != want {
		t.Errorf("%v: %s, want %s", err, out, want)
	}
}

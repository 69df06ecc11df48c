package metallb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

const controlSocket = "/run/bird/metallb.ctl"

// routerConfig is that of the speakers' BIRD. It writes what it learns into the kernel as the
// lab's router does.
func routerConfig() string {
	return fmt.Sprintf(`# The router of MetalLB's speakers.
router id %[1]s;
log stderr all;

protocol device {}
protocol kernel {
  ipv4 { import none; export all; };
  kernel table %[2]d;
  merge paths on;
}
protocol bgp speaker {
  local %[3]s port %[4]d as %[5]d;
  neighbor range %[6]s as %[7]d;
  passive on;
  hold time 9;
  ipv4 { import all; export none; };
}
`, plan.TorLAN.IPv4.Addr(), Table, plan.TorLAN.IPv4.Addr(), port, routerAS, plan.LAN4, speakerAS)
}

// startRouter runs BIRD, and has the router's kernel ask its table first.
func startRouter(ctx context.Context, l *cluster.Lab) error {
	config := l.Dir.Member(plan.Tor, "config", routerName+".conf")
	if _, err := l.Dir.Write(config, []byte(routerConfig()), 0o644); err != nil {
		return err
	}
	bird, _, err := process.Ensure(process.Spec{
		Member: member.Of(l.Dir, plan.Tor), Name: routerName, Path: l.Programs, Inputs: []string{config},
		Argv: []string{"bird", "-f", "-c", config, "-s", controlSocket},
	})
	if err != nil {
		return err
	}
	err = process.Await(ctx, "the BIRD of MetalLB's speakers", []*process.Process{bird}, func(ctx context.Context) error {
		_, err := onRouter(ctx, l, "birdc", "-s", controlSocket, "show", "status")
		return err
	})
	if err != nil {
		return err
	}
	if has, err := hasRule(ctx, l); err != nil || has {
		return err
	}
	_, err = onRouter(ctx, l, append([]string{"ip", "-4", "rule", "add"}, rule...)...)
	return err
}

// stopRouter ends BIRD, with its routes, and takes the rule away.
func stopRouter(ctx context.Context, l *cluster.Lab) error {
	running, err := process.List(member.Of(l.Dir, plan.Tor))
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(running, func(p *process.Process) bool { return p.Name == routerName }); i >= 0 {
		if err := running[i].Stop(10 * time.Second); err != nil {
			return err
		}
	}
	has, err := hasRule(ctx, l)
	if err == nil && has {
		_, err = onRouter(ctx, l, append([]string{"ip", "-4", "rule", "del"}, rule...)...)
	}
	return err
}

var rule = []string{"pref", strconv.Itoa(rulePreference), "lookup", strconv.Itoa(Table)}

func hasRule(ctx context.Context, l *cluster.Lab) (bool, error) {
	out, err := onRouter(ctx, l, "ip", "-4", "rule", "show", "pref", strconv.Itoa(rulePreference))
	return strings.TrimSpace(out) != "", err
}

// onRouter runs a command there.
func onRouter(ctx context.Context, l *cluster.Lab, argv ...string) (string, error) {
	cmd, err := l.Command(plan.Tor, argv...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", errors.Join(context.Cause(ctx), fmt.Errorf("%s on %s: %w: %s", strings.Join(argv, " "), plan.Tor, err, strings.TrimSpace(string(out))))
	}
	return string(out), nil
}

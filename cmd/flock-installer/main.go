// Command flock-installer puts the CNI plugin and its configuration onto a node,
// or removes them. See docs/cmd-flock-installer.md.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"

	"flock.fritzlab.net/flock/internal/version"
	"flock.fritzlab.net/flock/pkg/cni/installer"
)

const usage = `flock-installer puts flock's CNI plugin onto a node, or takes it off.

  flock-installer install     copies the plugin into --bin-dir and writes
                              01-flock.conflist to --conf-dir: from then on the
                              runtime gives new pods to flock. Run again, it
                              changes only what differs.
  flock-installer uninstall   removes both, unless somebody edited them, and
                              flock's nftables tables if no pod of flock is left.
                              Pods that flock has wired keep their network until
                              they end, but nothing of flock is called then:
                              drain the node first.

In a cluster the DaemonSet's init container runs install, with the node's
directories mounted at the paths below. A file of these names that is not flock's
own is never overwritten, and neither is a configuration edited by hand.

`

func main() {
	if err := run(os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "flock-installer:", err)
			os.Exit(1)
		}
	}
}

func run(args []string) error {
	i := installer.Installer{Log: slog.New(slog.NewTextHandler(os.Stdout, nil)).With("release", version.Version)}
	flags := flag.NewFlagSet("flock-installer", flag.ContinueOnError)
	flags.StringVar(&i.BinDir, "bin-dir", installer.DefaultBinDir, "the `directory` where the runtime looks for plugins")
	flags.StringVar(&i.ConfDir, "conf-dir", installer.DefaultConfDir, "the `directory` where the runtime looks for network configurations")
	flags.StringVar(&i.StateDir, "state-dir", installer.DefaultStateDir, "the agent's `directory`, which the installer makes accessible to root only")
	flags.StringVar(&i.Plugin, "plugin", installer.DefaultPlugin, "the plugin's `file` to install")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage, "Flags, after the command:\n")
		flags.PrintDefaults()
	}

	command := ""
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		command, args = args[0], args[1:]
	}
	if command == "help" {
		args = []string{"-help"}
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q: want nothing after the flags; flock-installer --help says more", flags.Arg(0))
	}
	switch command {
	case "install":
		return i.Install()
	case "uninstall":
		return errors.Join(i.Uninstall(), i.RemoveTables())
	}
	return fmt.Errorf("command is %q: want install or uninstall; flock-installer --help says more", command)
}

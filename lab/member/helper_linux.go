package member

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/cgroup"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/state"
)

// A process joins cgroups and namespaces as a whole only before it has done
// anything else, so the program starts itself again under one of these names and
// becomes what is to run.
const (
	helperCreate = "flock-lab-create"
	helperEnter  = "flock-lab-enter"
	// helperStart is helperEnter for Start. It reports errors through the file
	// descriptor startReport.
	helperStart = "flock-lab-start"
)

const startReport = 3

func init() {
	if isHelper() {
		// Namespaces are a thread's; /proc/PID/ns shows those of the first.
		runtime.LockOSThread()
	}
}

func isHelper() bool {
	return slices.Contains([]string{helperCreate, helperEnter, helperStart}, os.Args[0])
}

// RunHelper does what this program was started again for, and does not return.
// In any other case it does nothing. main and TestMain call it first.
func RunHelper() {
	if !isHelper() {
		return
	}
	if err := helper(os.Args); err != nil {
		var report io.Writer = os.Stderr
		if os.Args[0] == helperStart {
			report = os.NewFile(startReport, "report")
		}
		fmt.Fprintln(report, err)
		var notFound *exec.Error
		if errors.As(err, &notFound) {
			os.Exit(127)
		}
		os.Exit(126)
	}
	os.Exit(0)
}

func helper(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("%s is started by the lab itself", args[0])
	}
	dir, err := state.For(args[1])
	if err != nil {
		return err
	}
	m := Of(dir, args[2])
	switch args[0] {
	case helperCreate:
		return m.becomeNew()
	case helperStart:
		unix.CloseOnExec(startReport)
		// A lab that is brought up under nice(1) runs at the usual priority.
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 0); err != nil {
			return fmt.Errorf("set the usual priority: %w", err)
		}
	}
	return m.become(args[3:])
}

// Command is a command that will run in the member, with the environment of one
// who logged in there: the lab's programs first in the path.
func (m Member) Command(path string, argv ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{helperEnter, m.dir.Lab(), m.name}, argv...)
	cmd.Env = append(os.Environ(), "PATH="+path+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	return cmd
}

// Start starts a command made by Command in a session of its own and returns when
// it runs in the member. If this program ends earlier, the command does too: one
// that is on its way in is not found by who takes the member away meanwhile.
func Start(cmd *exec.Cmd) error {
	report, child, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	cmd.Args[0] = helperStart
	cmd.ExtraFiles = []*os.File{child} // startReport
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is sent when this thread ends
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	child.Close()
	if err != nil {
		return err
	}
	said, err := io.ReadAll(report) // until exec closes the other end
	if len(said) > 0 {
		err = errors.New(strings.TrimSpace(string(said)))
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
	}
	return err
}

// become joins the member and turns into argv, in the same working directory if
// that exists there too.
func (m Member) become(argv []string) error {
	if len(argv) == 0 {
		return errors.New("no command to run")
	}
	if !m.Exists() {
		return fmt.Errorf("lab %s has no member %s: see lab status", m.dir.Lab(), m.name)
	}
	wd, wdErr := os.Getwd()
	tree, err := cgroup.ForLab(m.dir.Lab())
	if err != nil {
		return err
	}
	if err := tree.Join(m.name); err != nil {
		return err
	}
	// A thread that shares its working directory with others may not change
	// mount namespaces (setns(2)).
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	for _, k := range kinds {
		if err := setns(m.pin(k.name), k.flag); err != nil {
			return err
		}
	}
	if wdErr == nil && os.Chdir(wd) != nil {
		if err := os.Chdir("/"); err != nil {
			return err
		}
	}
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	// What runs in the member outlives who started it there.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Exec(program, argv, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", program, err)
	}
	return nil
}

func setns(path string, flag int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, flag); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}

// becomeNew makes the member's namespaces around this process, says so with one
// byte on standard output and lives until standard input is closed.
func (m Member) becomeNew() error {
	hierarchies, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	tree, err := cgroup.ForLab(m.dir.Lab())
	if err != nil {
		return err
	}
	if err := tree.JoinRoot(m.name); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	if err := tree.Join(m.name); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := unix.Sethostname([]byte(m.name)); err != nil {
		return err
	}
	if err := m.mountOwn(hierarchies); err != nil {
		return err
	}
	if _, err := os.Stdout.Write([]byte{'.'}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// disk lists what of a member is kept in its directory, so that both sides can
// read and write it: own is its place there, at the path in the member.
var disk = []struct{ own, at string }{
	{"containerd", "/var/lib/containerd"},
	{"kubelet", "/var/lib/kubelet"},
	{"log", "/var/log"},
	{"cni/net.d", "/etc/cni/net.d"},
	{"cni/bin", "/opt/cni/bin"},
}

// overlaid are the directories that a member has a copy of, in memory.
var overlaid = []string{"/var", "/etc", "/opt"}

// mountOwn makes the member's view of the file system.
func (m Member) mountOwn(hierarchies []cgroup.Hierarchy) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make all mounts private: %w", err)
	}
	if err := dropNamespaceFiles(); err != nil {
		return err
	}
	own, err := unix.Open(m.dir.Member(m.name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	labs, err := unix.Open(state.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}

	if err := mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, d := range overlaid {
		upper, work := "/run/overlay"+d+"/upper", "/run/overlay"+d+"/work"
		for _, dir := range []string{upper, work} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if err := mount("overlay", d, "overlay", 0, "lowerdir="+d+",upperdir="+upper+",workdir="+work); err != nil {
			return err
		}
	}
	// The overlays hide the machine's own directories; the open ones still
	// lead there, as they did before.
	if err := bind(fmt.Sprintf("/proc/self/fd/%d", labs), state.Root); err != nil {
		return err
	}
	for _, d := range disk {
		if err := os.MkdirAll(d.at, 0o755); err != nil {
			return err
		}
		if err := bind(fmt.Sprintf("/proc/self/fd/%d/%s", own, d.own), d.at); err != nil {
			return err
		}
	}
	// The machine's name servers cannot be asked from here.
	for file, content := range map[string]string{
		"/etc/hosts":       plan.Hosts(plan.Nodes(plan.MaxNodes)),
		"/etc/resolv.conf": "# The lab has no name server; its names are in /etc/hosts.\n",
	} {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) { // maybe a link
			return err
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}

	// What a volume plugin or a container mounts here, the others must see.
	if err := mount("", "/var/lib/kubelet", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return err
	}

	if err := ownTunables(); err != nil {
		return err
	}

	// /sys/class/net shows the namespace in which sysfs was mounted.
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	return cgroup.MountOwn(hierarchies)
}

// tunables are kernel parameters that belong to no namespace and that a kubelet
// sets, as if the machine were its own: to panic on an oops, for one.
var tunables = []string{
	"vm/overcommit_memory", "vm/panic_on_oom",
	"kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// ownTunables puts copies over those parameters, so that who sets them here
// changes nothing on the machine.
func ownTunables() error {
	for _, t := range tunables {
		original, own := filepath.Join("/proc/sys", t), filepath.Join("/run/sysctl", t)
		value, err := os.ReadFile(original)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(own), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(own, value, 0o644); err != nil {
			return err
		}
		if err := bind(own, original); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, at, fstype string, flags uintptr, options string) error {
	if err := unix.Mount(source, at, fstype, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, at, err)
	}
	return nil
}

func bind(from, at string) error {
	if err := unix.Mount(from, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, at, err)
	}
	return nil
}

// dropNamespaceFiles undoes this mount namespace's copies of mounts that keep
// other namespaces, the lab's and anyone's: they would keep them alive after
// their owner has let go.
func dropNamespaceFiles() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.Contains(line, " - nsfs ") {
			continue
		}
		// Mounts seen twice, below a directory that is mounted on itself,
		// may have gone with the first.
		if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", fields[4], err)
		}
	}
	return nil
}

package image

import (
	"fmt"
	"io/fs"
	"path/filepath"
)

// References of the lab's images, as its pods name them.
const (
	FlockRef   = "flock:dev"
	EchoRef    = "echo:dev"
	PauseRef   = "pause:dev"
	CoreDNSRef = "coredns:dev"
)

// Programs are those of flock in its image, all in /usr/local/bin.
var Programs = []string{"flock", "flock-agent", "flock-bird-stop", "flock-controller", "flock-installer", "flock-probe", "flock-slice"}

// PluginFlags are the linker's for flock, the plugin, which starts before Go's runtime.
const PluginFlags = "-E flock.fritzlab.net/flock/pkg/cni/plugin.start"

// Flock is flock's own image, the same that a release has. There is no shell in it, so
// that nothing in deploy/ comes to need one. The programs are taken from bin, BIRD from
// this machine, and what else there is from checkout, flock's source tree.
func Flock(checkout, bin string) (Spec, error) {
	bird, err := BIRD("/")
	if err != nil {
		return Spec{}, fmt.Errorf("%w: install Debian's package bird2", err)
	}
	return FlockWith(bird, checkout, bin), nil
}

// FlockWith is flock's own image with the entries that BIRD returned.
func FlockWith(bird []Entry, checkout, bin string) Spec {
	return Spec{
		Ref:        FlockRef,
		Entrypoint: []string{"/usr/local/bin/flock-agent"},
		Env:        []string{debianPath},
		Entries:    Merge(Own(checkout, bin), bird),
	}
}

// BIRD is the routing daemon and its client as they are in the file system at root,
// with the libraries that they need.
func BIRD(root string) ([]Entry, error) {
	bird, err := Dynamic(root, "/usr/sbin/bird")
	if err != nil {
		return nil, err
	}
	birdc, err := Dynamic(root, "/usr/sbin/birdc")
	if err != nil {
		return nil, err
	}
	return Merge(bird, birdc), nil
}

// Own is what flock itself puts into its image.
func Own(checkout, bin string) []Entry {
	own := []Entry{{
		Path:   "/etc/flock/bird.conf",
		Mode:   0o644,
		Source: filepath.Join(checkout, "deploy", "bird.conf"),
	}}
	for _, p := range Programs {
		own = append(own, File("/usr/local/bin/"+p, filepath.Join(bin, p)))
	}
	return own
}

// debianPath is the search path of Debian's base image.
const debianPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Echo is the image of lab/echo. bin is the path of its program.
func Echo(bin string) Spec {
	return Spec{
		Ref:        EchoRef,
		Entrypoint: []string{"/echo"},
		Env:        []string{"PATH=/"},
		User:       "65532:65532",
		Entries: []Entry{
			File("/echo", filepath.Join(bin, "echo")),
			{Path: "/state", Mode: fs.ModeDir | 0o755, UID: 65532, GID: 65532},
		},
	}
}

// CoreDNS is the image of the cluster's name server. bin is the path of its program.
func CoreDNS(bin string) Spec {
	return Spec{
		Ref:        CoreDNSRef,
		Entrypoint: []string{"/coredns"},
		Entries:    []Entry{File("/coredns", filepath.Join(bin, "coredns"))},
	}
}

// Pause is the image of the sandboxes' own process, lab/image/pause.
func Pause(bin string) Spec {
	return Spec{
		Ref:        PauseRef,
		Entrypoint: []string{"/pause"},
		User:       "65535:65535",
		Entries:    []Entry{File("/pause", filepath.Join(bin, "pause"))},
	}
}

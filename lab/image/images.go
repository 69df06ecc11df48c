package image

import (
	"fmt"
	"io/fs"
	"path/filepath"
)

// References of the lab's images, as its pods name them.
const (
	FlockRef = "flock:dev"
	EchoRef  = "echo:dev"
	PauseRef = "pause:dev"
)

// Programs are those of flock in its image, all in /usr/local/bin.
var Programs = []string{"flock", "flock-agent", "flock-installer", "flock-slice"}

// Flock is flock's own image, the same that the Dockerfile makes, less the rest
// of Debian: there is no shell in it, so that nothing in deploy/ comes to need
// one. The programs are taken from bin, BIRD from this machine, and what else
// there is from checkout, flock's source tree.
func Flock(checkout, bin string) (Spec, error) {
	bird, err := Dynamic("/usr/sbin/bird")
	if err != nil {
		return Spec{}, fmt.Errorf("%w: install Debian's package bird2", err)
	}
	birdc, err := Dynamic("/usr/sbin/birdc")
	if err != nil {
		return Spec{}, fmt.Errorf("%w: install Debian's package bird2", err)
	}
	own := []Entry{{
		Path:   "/etc/flock/bird.conf",
		Mode:   0o644,
		Source: filepath.Join(checkout, "deploy", "bird.conf"),
	}}
	for _, p := range Programs {
		own = append(own, File("/usr/local/bin/"+p, filepath.Join(bin, p)))
	}
	return Spec{
		Ref:        FlockRef,
		Entrypoint: []string{"/usr/local/bin/flock-agent"},
		Env:        []string{debianPath},
		Entries:    Merge(own, bird, birdc),
	}, nil
}

// debianPath is the search path of Debian's base image.
const debianPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Echo is the image of lab/echo, whose program is taken from bin.
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

// Pause is the image of the sandboxes' own process, lab/image/pause.
func Pause(bin string) Spec {
	return Spec{
		Ref:        PauseRef,
		Entrypoint: []string{"/pause"},
		User:       "65535:65535",
		Entries:    []Entry{File("/pause", filepath.Join(bin, "pause"))},
	}
}

package installer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"regexp"
	"strings"
)

// kind is the kind of configuration at flock's path.
type kind int

const (
	absent kind = iota
	own         // as an installer of any release wrote it
	edited      // names flock's plugin, but no installer wrote it so
)

// template is the configuration. A runtime older than CNI 1.1 reads cniVersion
// alone, and would not take a version it does not know; a newer one takes the
// highest that it finds. By the last key an installer of any release distinguishes
// its own file from an edited one; runtimes ignore it.
var template = `{
  "cniVersion": "1.0.0",
  "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
  "name": "flock",
  "plugins": [
    {"type": "flock", "capabilities": {"portMappings": true}}
  ],
  "flockInstaller": "sha256:` + noDigest + `"
}
`

var (
	noDigest    = strings.Repeat("0", hex.EncodedLen(sha256.Size))
	digestShape = regexp.MustCompile(`"flockInstaller": "sha256:([0-9a-f]{64})"`)
)

// conflist returns the configuration's bytes.
func conflist() []byte { return stamp([]byte(template)) }

// stamp fills in the digest of everything but the digest. Content that has no
// place for one is returned as it is.
func stamp(content []byte) []byte {
	at := digestShape.FindSubmatchIndex(content)
	if at == nil {
		return content
	}
	stamped := bytes.Clone(content)
	copy(stamped[at[2]:at[3]], noDigest)
	sum := sha256.Sum256(stamped)
	hex.Encode(stamped[at[2]:at[3]], sum[:])
	return stamped
}

// conflistAt returns the kind of configuration at path. One that does not name flock's
// plugin is a [foreignError], because flock's path must not hold another network.
func conflistAt(path string) (kind, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return absent, nil
	case err != nil:
		return absent, err
	case !info.Mode().IsRegular():
		return absent, foreign("%s is not a regular file: move it away", path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return absent, err
	}
	if digestShape.Match(content) && bytes.Equal(stamp(content), content) {
		return own, nil
	}
	var list struct {
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(content, &list); err != nil {
		return absent, foreign("%s is not a network configuration (%v): correct it or move it away", path, err)
	}
	for _, p := range list.Plugins {
		if p.Type == PluginName {
			return edited, nil
		}
	}
	return absent, foreign("%s does not name the plugin %q: correct it or move it away", path, PluginName)
}

package release

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdx/v2/common"
)

// program is a built program that a release has.
type program struct {
	name, file string
	platform   platform
}

// bill is the software bill of materials of a release (SPDX 2.3, JSON): the programs
// with the Go modules that are linked into them, as each program's own build information
// has it, and the images with the Debian packages that they have files of.
func (s Source) bill(programs []program, contents []Content) ([]byte, error) {
	b := &billOf{known: map[string]bool{}, doc: &spdx.Document{
		SPDXVersion:    spdx.Version,
		DataLicense:    spdx.DataLicense,
		SPDXIdentifier: "DOCUMENT",
		DocumentName:   "flock-" + s.Version,
		CreationInfo: &spdx.CreationInfo{
			Created:  s.Time.Format("2006-01-02T15:04:05Z"),
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "flock-release"}},
		},
	}}
	for _, c := range contents {
		id := b.add(&spdx.Package{
			PackageName: "flock-image-linux-" + c.Arch, PackageVersion: s.Version,
			PrimaryPackagePurpose: "CONTAINER", PackageLicenseDeclared: "Apache-2.0 AND GPL-2.0-or-later",
		}, "")
		b.relate("DOCUMENT", "DESCRIBES", id)
		for _, p := range c.Packages {
			b.relate(id, "CONTAINS", b.add(&spdx.Package{
				PackageName: p.Name, PackageVersion: p.Version,
				PackageChecksums:        []common.Checksum{{Algorithm: common.SHA256, Value: p.SHA256}},
				PackageOriginator:       &common.Originator{OriginatorType: "Organization", Originator: "Debian"},
				PackageSupplier:         &common.Supplier{SupplierType: "Organization", Supplier: "Debian"},
				PackageFileName:         fmt.Sprintf("%s_%s_%s.deb", p.Name, p.Version, p.Arch),
				PackageVerificationCode: nil,
			}, fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=debian-12", p.Name, escape(p.Version), p.Arch)))
		}
		for _, p := range programs {
			if p.platform == (platform{"linux", c.Arch}) && slices.ContainsFunc(c.Flock, func(e imageEntry) bool { return filepath.Base(e.Path) == p.name }) {
				b.relate(id, "CONTAINS", programID(p))
			}
		}
	}
	for _, p := range programs {
		if err := b.program(s, p); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(b.doc.Packages, func(x, y *spdx.Package) int {
		return strings.Compare(string(x.PackageSPDXIdentifier), string(y.PackageSPDXIdentifier))
	})

	// The namespace must be unique for a document (SPDX 2.3, 6.5): it has a digest of
	// the content.
	b.doc.DocumentNamespace = "https://flock.fritzlab.net/spdx/flock-" + escape(s.Version)
	var out bytes.Buffer
	if err := spdxjson.Write(b.doc, &out, spdxjson.Indent(" ")); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(out.Bytes())
	b.doc.DocumentNamespace += "-" + hex.EncodeToString(sum[:8])
	out.Reset()
	err := spdxjson.Write(b.doc, &out, spdxjson.Indent(" "))
	return out.Bytes(), err
}

type billOf struct {
	doc   *spdx.Document
	known map[string]bool
}

// add adds a package once, and returns its identifier.
func (b *billOf) add(p *spdx.Package, purl string) string {
	if p.PackageSPDXIdentifier == "" {
		p.PackageSPDXIdentifier = common.ElementID(identifier("Package-" + p.PackageName + "-" + p.PackageVersion))
		if strings.HasPrefix(purl, "pkg:deb/") {
			_, arch, _ := strings.Cut(purl, "?arch=")
			arch, _, _ = strings.Cut(arch, "&")
			p.PackageSPDXIdentifier += common.ElementID("-" + arch)
		}
	}
	id := string(p.PackageSPDXIdentifier)
	if b.known[id] {
		return id
	}
	b.known[id] = true
	if purl != "" {
		p.PackageExternalReferences = []*spdx.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: purl,
		}}
	}
	p.PackageDownloadLocation = "NOASSERTION"
	p.PackageLicenseConcluded = "NOASSERTION"
	if p.PackageLicenseDeclared == "" {
		p.PackageLicenseDeclared = "NOASSERTION"
	}
	p.PackageCopyrightText = "NOASSERTION"
	b.doc.Packages = append(b.doc.Packages, p)
	return id
}

func (b *billOf) relate(from, relation, to string) {
	b.doc.Relationships = append(b.doc.Relationships, &spdx.Relationship{
		RefA: common.MakeDocElementID("", from), Relationship: relation, RefB: common.MakeDocElementID("", to),
	})
}

// program adds a program with what is linked into it.
func (b *billOf) program(s Source, p program) error {
	info, err := buildinfo.ReadFile(p.file)
	if err != nil {
		return fmt.Errorf("build information of %s: %w", p.name, err)
	}
	sum, err := fileSum(p.file)
	if err != nil {
		return err
	}
	id := b.add(&spdx.Package{
		PackageSPDXIdentifier: common.ElementID(programID(p)),
		PackageName:           p.name, PackageVersion: s.Version, PackageFileName: fmt.Sprintf("%s_%s/%s", p.platform.os, p.platform.arch, p.name),
		PrimaryPackagePurpose: "APPLICATION", PackageLicenseDeclared: "Apache-2.0",
		PackageChecksums: []common.Checksum{{Algorithm: common.SHA256, Value: sum}},
	}, "pkg:golang/"+info.Main.Path+"@"+escape(s.Version)+"#cmd/"+p.name)
	b.relate("DOCUMENT", "DESCRIBES", id)
	stdlib := strings.TrimPrefix(info.GoVersion, "go")
	b.relate(id, "DEPENDS_ON", b.add(&spdx.Package{PackageName: "stdlib", PackageVersion: stdlib}, "pkg:golang/stdlib@"+escape(stdlib)))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		b.relate(id, "DEPENDS_ON", b.add(&spdx.Package{PackageName: m.Path, PackageVersion: m.Version}, "pkg:golang/"+m.Path+"@"+escape(m.Version)))
	}
	return nil
}

func programID(p program) string {
	return identifier("Program-" + p.name + "-" + p.platform.os + "-" + p.platform.arch)
}

// identifier is text in the letters that SPDX allows in one (SPDX 2.3, 7.2).
func identifier(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		}
		return '-'
	}, text)
}

// escape writes a version as a package URL has it.
func escape(version string) string {
	return strings.NewReplacer("+", "%2B", ":", "%3A", "~", "~").Replace(version)
}

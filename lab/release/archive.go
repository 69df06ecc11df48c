package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// file is a file of an archive: content, or a source on this machine.
type file struct {
	name    string
	mode    int64
	content []byte
	source  string
}

// writeTarGz writes an archive of the files, sorted by name and without anything of the
// machine in their headers.
func writeTarGz(path string, files ...file) error {
	slices.SortFunc(files, func(a, b file) int { return bytes.Compare([]byte(a.name), []byte(b.name)) })
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	gz, err := gzip.NewWriterLevel(out, gzip.BestCompression)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(gz)
	for _, f := range files {
		if f.source != "" {
			if f.content, err = os.ReadFile(f.source); err != nil {
				return err
			}
		}
		if err := addFile(tw, filepath.ToSlash(f.name), f.mode, f.content); err != nil {
			return err
		}
	}
	for _, close := range []func() error{tw.Close, gz.Close, out.Close} {
		if err := close(); err != nil {
			return err
		}
	}
	return nil
}

func addFile(tw *tar.Writer, name string, mode int64, content []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: time.Unix(0, 0)}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(content)
	return err
}

// untar unpacks an archive of regular files below a directory.
func untar(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	return extract(dir, tar.NewReader(f))
}

package image

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// Dynamic is a program of the file system at root ("/": this machine) with all that
// its start needs: its loader (PT_INTERP) and the libraries that it and they name
// (DT_NEEDED), each where the loader looks for it. The program keeps its path.
//
// The file system at root may be of another architecture. Its symbolic links must not
// lead out of it.
//
// It knows the directories that the loader of a Debian system trusts, and refuses
// programs with a search path of their own (DT_RPATH, DT_RUNPATH) or without a
// loader; what a program opens at run time (dlopen: NSS, iconv) is not found.
func Dynamic(root, program string) ([]Entry, error) {
	at := func(path string) string { return filepath.Join(root, path) }
	f, err := elf.Open(at(program))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	loader, err := interpreter(f)
	if err != nil {
		return nil, fmt.Errorf("program %s: %w", program, err)
	}
	dirs, err := libraryDirs(root)
	if err != nil {
		return nil, err
	}

	found := map[string]string{filepath.Base(loader): loader} // by soname
	queue := []string{program}
	for len(queue) > 0 {
		object := queue[0]
		queue = queue[1:]
		sonames, err := needed(at(object))
		if err != nil {
			return nil, err
		}
		for _, soname := range sonames {
			if found[soname] != "" {
				continue
			}
			lib, err := findLibrary(root, dirs, soname, f.Machine)
			if err != nil {
				return nil, fmt.Errorf("%s needs %s: %w", object, soname, err)
			}
			found[soname] = lib
			queue = append(queue, lib)
		}
	}

	entries := []Entry{File(program, at(program))}
	for _, lib := range found {
		// The merged /usr of Debian: /lib and /lib64 are links there and are
		// directories here, as the loader's own path must exist literally.
		entries = append(entries, File(lib, at(lib)))
	}
	slices.SortFunc(entries[1:], func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return entries, nil
}

// Merge joins lists of entries, of which some may name the same libraries.
func Merge(lists ...[]Entry) []Entry {
	var all []Entry
	seen := map[string]bool{}
	for _, e := range slices.Concat(lists...) {
		if !seen[e.Path] {
			seen[e.Path] = true
			all = append(all, e)
		}
	}
	return all
}

func interpreter(f *elf.File) (string, error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return "", err
		}
		return strings.TrimRight(string(b), "\x00"), nil
	}
	return "", errors.New("is linked statically: put it into the image as a plain file")
}

func needed(object string) ([]string, error) {
	f, err := elf.Open(object)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		if own, _ := f.DynString(tag); len(own) > 0 {
			return nil, fmt.Errorf("%s has a search path of its own (%s %s), which is not followed", object, tag, strings.Join(own, ":"))
		}
	}
	return f.ImportedLibraries()
}

// libraryDirs are the directories that ld.so(8) searches by itself, first hit
// first, as Debian builds it: by architecture, then the traditional ones.
func libraryDirs(root string) ([]string, error) {
	multiarch, err := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu*"))
	if err != nil {
		return nil, err
	}
	for i := range multiarch {
		multiarch[i] = filepath.Join("/usr/lib", filepath.Base(multiarch[i]))
	}
	return append(multiarch, "/usr/lib64", "/usr/lib"), nil
}

func findLibrary(root string, dirs []string, soname string, machine elf.Machine) (string, error) {
	for _, dir := range dirs {
		lib := filepath.Join(dir, soname)
		f, err := elf.Open(filepath.Join(root, lib))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return "", fmt.Errorf("%s: %w", lib, err)
		}
		match := f.Machine == machine
		f.Close()
		if match {
			return lib, nil
		}
	}
	return "", fmt.Errorf("not found in %s", strings.Join(dirs, ", "))
}

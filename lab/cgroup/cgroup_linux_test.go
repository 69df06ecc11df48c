package cgroup

import "testing"

func TestParse(t *testing.T) {
	for _, c := range []struct {
		line string
		want Hierarchy
		ok   bool
	}{
		{"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct", Hierarchy{"/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"}, true},
		{"40 31 0:37 / /sys/fs/cgroup/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,release_agent=/x,name=systemd", Hierarchy{"/sys/fs/cgroup/systemd", "none,name=systemd"}, true},
		{"41 31 0:38 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate", Hierarchy{"/sys/fs/cgroup", ""}, true},
		{"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755", Hierarchy{}, false},
		{"50 31 0:38 / /mnt/cgroup rw,relatime - cgroup2 cgroup2 rw", Hierarchy{}, false},
	} {
		got, ok := parse(c.line)
		if ok != c.ok || got != c.want {
			t.Errorf("%s\n: %+v %v, want %+v %v", c.line, got, ok, c.want, c.ok)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
)

func TestMountPoints(t *testing.T) {
	const mountinfo = `22 28 0:21 / /sys rw - sysfs sysfs rw
30 22 0:26 / /sys/fs/cgroup rw - cgroup cgroup rw,cpu
31 22 0:27 / /sys/fs/cgroup/unified rw shared:9 master:1 - cgroup2 cgroup2 rw,nsdelegate
32 22 0:27 /a /mnt/with\040space\134and\012line ro - cgroup2 none rw
33 22 0:28 / /mnt/cgroup2 rw - ext4 /dev/cgroup2 rw
34 22 0:27 / /mnt/last\04 rw - cgroup2 none rw
broken
`
	got, err := mountPoints(strings.NewReader(mountinfo), []string{"cgroup2"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/sys/fs/cgroup/unified", "/mnt/with space\\and\nline", `/mnt/last\04`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestUnifiedPath(t *testing.T) {
	for _, tt := range []struct{ content, want, err string }{
		{content: "4:memory:/x\n0::/a/b\n", want: "/a/b"},
		{content: "0::/\n", want: "/"},
		{content: "0::/a:b c\n", want: "/a:b c"},
		{content: "0::/a (deleted)\n", err: "/a: file does not exist"},
		{content: "0::/../x\n", err: "outside this cgroup namespace"},
		{content: "0::/..x\n", want: "/..x"},
		{content: "4:memory:/x\n", err: "none in the cgroup2 hierarchy"},
	} {
		got, err := unifiedPath(tt.content)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: got %q, %v; want %q, %q", tt.content, got, err, tt.want, tt.err)
		}
	}
	if _, err := unifiedPath("0::/a (deleted)\n"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a deleted cgroup: %v is not fs.ErrNotExist", err)
	}
}

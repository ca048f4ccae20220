//go:build unix

package server

import "golang.org/x/sys/unix"

// diskShare is how much of the file system is used, 0 to 1.
func diskShare(dir string) (float64, bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Blocks == 0 {
		return 0, false
	}
	return 1 - float64(st.Bavail)/float64(st.Blocks), true
}

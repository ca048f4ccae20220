package mesh

// MaxName is the longest name of a region, cell, server, worker or function.
const MaxName = 63

// ValidName reports whether s may name a region, cell, server, worker,
// jurisdiction, function or variant: 1 to 63 lower-case letters, digits and
// dashes, with no dash at either end. Such a name can stand in a task id, a
// certificate's URI and a file name as it is.
func ValidName(s string) bool {
	if s == "" || len(s) > MaxName || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

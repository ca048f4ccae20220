// Package archtest holds the rooms of ARCHITECTURE.md: which package may import
// which, which of them are pure, where a library may be used, how packages are
// named and documented, and that the words and links of the pages lead
// somewhere. It is tests only, and knows the module by its source.
//
// A new package needs a row in the table of rooms_test.go; a row whose package
// is gone, and a permission that nobody uses, fail as well.
package archtest

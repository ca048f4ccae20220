// Package registry keeps tenants and functions as documents that every cell
// holds in its own replicated state, so that every region works by itself in a
// partition and converges after.
//
// # Documents
//
// A document has a kind, a name, a version and content:
//
//	kind      name            content
//	tenant    its name        Tenant: residency of all its tasks
//	function  tenant/name     Alias: the digest of the version it stands for
//	version   digest          the spec of a function and that digest
//
// A version is named by the SHA-256 of its spec's bytes and holds nothing
// else, so that two cells that deploy the same spec make the same document. It
// never changes; only function documents move. When and where a function was
// deployed is the version of its function document.
//
// Other kinds are kept and passed on unread, so that a cell of an older
// release does not lose what a newer one wrote.
//
// # Merging
//
// The last writer wins, by hybrid logical clock and then by author: see
// [Newer]. [Machine] applies Merge commands, which are a join: it does not
// matter in which order, how often and in which company documents arrive. A
// document that is malformed, or more than a minute ahead of the leader's
// clock, is refused by itself and the others are merged.
//
// A deletion is a tombstone. It gathers the names of the cells that have it,
// and is dropped by Forget once it has all of them: a cell that never saw it
// could bring the document back. Whether all have it is judged by Registry,
// which is told the members; the machine only does what it is told.
//
// # Shell
//
// [Registry] reads the committed state and makes the commands of edits and
// merges. It proposes nothing, has no network and no clock: times are passed
// in, and moving documents between cells is the scheduler's.
//
// The package also reads manifests ([ParseManifest]) and holds the one set of
// rules for what a function may declare ([Validate]). Modules lie in
// registry/code.
package registry

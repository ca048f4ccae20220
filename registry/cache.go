package registry

import (
	"container/list"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// specCache keeps the decoded specs used last. Specs are named by their
// content, so an entry never goes stale. It is not safe for concurrent use.
type specCache struct {
	max     int
	recent  *list.List // of *cachedSpec, the one used last in front
	entries map[string]*list.Element
}

type cachedSpec struct {
	digest string
	spec   *isobarv1.FunctionSpec
}

func newSpecCache(size int) *specCache {
	return &specCache{max: size, recent: list.New(), entries: make(map[string]*list.Element)}
}

func (c *specCache) get(digest string) *isobarv1.FunctionSpec {
	e := c.entries[digest]
	if e == nil {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(*cachedSpec).spec
}

func (c *specCache) put(digest string, spec *isobarv1.FunctionSpec) {
	if e := c.entries[digest]; e != nil {
		c.recent.MoveToFront(e)
		return
	}
	c.entries[digest] = c.recent.PushFront(&cachedSpec{digest, spec})
	for c.recent.Len() > c.max {
		last := c.recent.Back()
		c.recent.Remove(last)
		delete(c.entries, last.Value.(*cachedSpec).digest)
	}
}

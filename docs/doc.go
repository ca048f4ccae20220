// Package docs is the manual. Its tests run what the pages say against a real
// mesh and compare the tables with the code, so that a page that has become
// wrong fails; it holds no code of the product.
package docs

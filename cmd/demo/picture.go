package main

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"math"
)

const (
	// thumbnailSide is the longest side of a thumbnail, in pixels; what the
	// function promises.
	thumbnailSide = 128
	// Widths of a picture, in pixels. The height is three quarters of it.
	minWidth, maxWidth = 64, 2048
	// widthStep makes pictures shareable between tasks.
	widthStep = 32
	// colourSlack is how far a quadrant's colour may be off after two rounds of
	// JPEG, of 255.
	colourSlack = 24
)

// pictureWidth is the width of the picture that stands for a request: half as
// many pixels as the input has tokens.
func pictureWidth(tokens int) int {
	steps := (tokens/2 + widthStep - 1) / widthStep
	return min(max(steps*widthStep, minWidth), maxWidth)
}

// picture is a JPEG whose look is known: four quadrants, each of one colour
// with a fine grain.
type picture struct {
	width, height int
	quadrants     [4]color.YCbCr
	jpeg          []byte
}

// newPicture paints the picture of a width. Equal widths give equal pictures.
func newPicture(width int) (*picture, error) {
	p := &picture{width: width, height: width * 3 / 4}
	for i := range p.quadrants {
		h := int64(width*4+i) * 2654435761 // a spread of colours
		p.quadrants[i] = color.YCbCr{Y: level(h >> 24), Cb: level(h >> 16), Cr: level(h >> 8)}
	}
	im := image.NewYCbCr(image.Rect(0, 0, p.width, p.height), image.YCbCrSubsampleRatio420)
	for y := range p.height {
		for x := range p.width {
			grain := uint8((x*7+y*13)%9) * 2 // so that the file has some weight
			im.Y[im.YOffset(x, y)] = p.at(x, y).Y - 8 + grain
			c := im.COffset(x, y)
			im.Cb[c], im.Cr[c] = p.at(x, y).Cb, p.at(x, y).Cr
		}
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, im, &jpeg.Options{Quality: 75}); err != nil {
		return nil, fmt.Errorf("paint picture of %d pixels: %w", width, err)
	}
	p.jpeg = out.Bytes()
	return p, nil
}

// level is one of the middle half of the values a channel can have, so that
// JPEG does not clip it.
func level(h int64) uint8 { return uint8(64 + h&0x7f) }

func (p *picture) at(x, y int) color.YCbCr {
	i := 0
	if x >= p.width/2 {
		i++
	}
	if y >= p.height/2 {
		i += 2
	}
	return p.quadrants[i]
}

// check decodes a thumbnail and compares it with the picture: its kind, its
// size, and the colour in the middle of each quadrant.
func (p *picture) check(result []byte) error {
	small, format, err := image.Decode(bytes.NewReader(result))
	if err != nil {
		return fmt.Errorf("the result is no picture: %w", err)
	}
	if format != "jpeg" {
		return fmt.Errorf("the result is a %s, want a jpeg", format)
	}
	longest := max(p.width, p.height, thumbnailSide)
	w, h := max(1, p.width*thumbnailSide/longest), max(1, p.height*thumbnailSide/longest)
	if b := small.Bounds(); b.Dx() != w || b.Dy() != h {
		return fmt.Errorf("the thumbnail of %dx%d is %dx%d, want %dx%d", p.width, p.height, b.Dx(), b.Dy(), w, h)
	}
	for i, want := range p.quadrants {
		x, y := w/4+i%2*w/2, h/4+i/2*h/2
		got, _ := color.YCbCrModel.Convert(mean(small, x, y)).(color.YCbCr)
		if off(got.Y, want.Y) || off(got.Cb, want.Cb) || off(got.Cr, want.Cr) {
			return fmt.Errorf("the thumbnail's colour at %d,%d is %v, want about %v", x, y, got, want)
		}
	}
	return nil
}

// mean is the mean colour of the pixels around a place.
func mean(im image.Image, x, y int) color.Color {
	const reach = 4
	var r, g, b, n uint32 // n is 81: no sum overflows
	for dy := -reach; dy <= reach; dy++ {
		for dx := -reach; dx <= reach; dx++ {
			pr, pg, pb, _ := im.At(im.Bounds().Min.X+x+dx, im.Bounds().Min.Y+y+dy).RGBA()
			r, g, b, n = r+pr>>8, g+pg>>8, b+pb>>8, n+1
		}
	}
	return color.RGBA{R: uint8(r / n), G: uint8(g / n), B: uint8(b / n), A: math.MaxUint8}
}

func off(a, b uint8) bool { return math.Abs(float64(a)-float64(b)) > colourSlack }

package main

import (
	"bytes"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"strings"
	"testing"
)

// picture is red on the left and blue on the right.
func picture(w, h int) image.Image {
	m := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			m.Set(x, y, color.RGBA{R: 200, A: 255})
			if x >= w/2 {
				m.Set(x, y, color.RGBA{B: 200, A: 255})
			}
		}
	}
	return m
}

func TestRun(t *testing.T) {
	t.Parallel()
	asPNG := func(b *bytes.Buffer, m image.Image) error { return png.Encode(b, m) }
	asJPEG := func(b *bytes.Buffer, m image.Image) error { return jpeg.Encode(b, m, nil) }
	for _, test := range []struct {
		name   string
		encode func(*bytes.Buffer, image.Image) error
		format string
		w, h   int
		wantW  int
		wantH  int
	}{
		{"wide", asPNG, "png", 640, 320, 128, 64},
		{"high", asJPEG, "jpeg", 300, 600, 64, 128},
		{"square", asJPEG, "jpeg", 129, 129, 128, 128},
		{"small", asPNG, "png", 40, 20, 40, 20},
		{"thread", asPNG, "png", 2000, 2, 128, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var in, out bytes.Buffer
			if err := test.encode(&in, picture(test.w, test.h)); err != nil {
				t.Fatal(err)
			}
			if err := run(&in, &out); err != nil {
				t.Fatal(err)
			}
			got, format, err := image.Decode(&out)
			if err != nil {
				t.Fatal(err)
			}
			if b := got.Bounds(); format != test.format || b.Dx() != test.wantW || b.Dy() != test.wantH {
				t.Errorf("got %s of %v, want %s of %d×%d", format, b, test.format, test.wantW, test.wantH)
			}
			middle := got.Bounds().Dy() / 2
			left, _, _, _ := got.At(2, middle).RGBA()
			_, _, right, _ := got.At(got.Bounds().Dx()-3, middle).RGBA()
			if left>>8 < 180 || right>>8 < 180 {
				t.Errorf("got red %d on the left and blue %d on the right, want the colours of the picture", left>>8, right>>8)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	var large bytes.Buffer
	if err := png.Encode(&large, image.NewGray(image.Rect(0, 0, 4001, 4000))); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"":                           "not a PNG or JPEG",
		"GIF89a":                     "not a PNG or JPEG",
		large.String():               "more than 16000000 pixels",
		large.String()[:40]:          "more than 16000000 pixels",
		"\x89PNG\r\n\x1a\n" + "\x00": "not a PNG or JPEG",
	} {
		if err := run(strings.NewReader(in), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

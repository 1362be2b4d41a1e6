/* The fast half of context.py: the same bytes as slow_context.py, which says what is done and why.

   Everything is integer arithmetic on buffers whose sizes are checked here, so that no input, of
   either direction, can make it read or write elsewhere or run longer than the tensor is large. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { PRECISION = 15, CLASSES = 64, OFFSET = 320, SHIFT = 3 };
enum { OWN, WEST, NORTH_WEST, NORTH, NORTH_EAST, NEIGHBOURS };
enum { BEFORE = 9 }; /* positions of the frame before: 3 x 3, row by row */
#define LEAST_RANGE (1u << 24)

/* Baseline x86-64 adds 8 activities at once, AVX2 adds 16: chosen when the module is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORISED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORISED
#endif

typedef struct {
    Py_ssize_t channels, height, width, levels;
    const int8_t *weights;      /* (neighbour, source channel, target channel) */
    const int8_t *before;       /* (position of the frame before, channel), or NULL */
    const int16_t *bias;        /* (target channel) */
    const uint8_t *magnitudes;  /* (levels) */
    const uint16_t *cumulative; /* (classes, levels + 1) */
    const uint8_t *previous;    /* symbols of the frame before (channels, height, width), or NULL */
    uint8_t *seen;              /* their magnitudes (height, width, channels) */
    uint16_t *row, *below;      /* activities modulo 2^16: (width, channels) each */
    uint16_t *active;           /* channels with a magnitude at this position */
    uint8_t *active_magnitude;
} Context;

VECTORISED static void
add_row(uint16_t *restrict activity, const int8_t *restrict weight, int magnitude, Py_ssize_t n)
{
    for (Py_ssize_t k = 0; k < n; k++)
        activity[k] = (uint16_t)(activity[k] + magnitude * weight[k]);
}

VECTORISED static void
add_products(uint16_t *restrict activity, const int8_t *restrict weight,
             const uint8_t *restrict magnitude, Py_ssize_t n)
{
    for (Py_ssize_t k = 0; k < n; k++)
        activity[k] = (uint16_t)(activity[k] + magnitude[k] * weight[k]);
}

static inline const int8_t *
weights_of(const Context *x, int tap, Py_ssize_t source)
{
    return x->weights + (tap * x->channels + source) * x->channels;
}

static inline const uint16_t *
table_of(const Context *x, uint16_t activity)
{
    int index = ((int)(int16_t)activity + OFFSET) >> SHIFT;
    index = index < 0 ? 0 : index >= CLASSES ? CLASSES - 1 : index;
    return x->cumulative + index * (x->levels + 1);
}

static void
start_row(Context *x, uint16_t *row)
{
    for (Py_ssize_t k = 0; k < x->width; k++)
        memcpy(row + k * x->channels, x->bias, x->channels * sizeof *row);
}

/* Add what the frame before says of this position. */
static void
add_previous(Context *x, Py_ssize_t line, Py_ssize_t column)
{
    Py_ssize_t n = x->channels;
    uint16_t *activity = x->row + column * n;
    for (int tap = 0; x->seen != NULL && tap < BEFORE; tap++) {
        Py_ssize_t y = line + tap / 3 - 1, z = column + tap % 3 - 1;
        if (y >= 0 && y < x->height && z >= 0 && z < x->width)
            add_products(activity, x->before + tap * n, x->seen + (y * x->width + z) * n, n);
    }
}

/* Note a coded symbol: at once for the later channels of its position. */
static inline Py_ssize_t
note(Context *x, Py_ssize_t column, Py_ssize_t c, int magnitude, Py_ssize_t count)
{
    Py_ssize_t from = c + 1;
    add_row(x->row + column * x->channels + from, weights_of(x, OWN, c) + from, magnitude,
            x->channels - from);
    x->active[count] = (uint16_t)c;
    x->active_magnitude[count] = (uint8_t)magnitude;
    return count + 1;
}

/* Pass the symbols of a position on to the positions that have it as a neighbour. */
static void
spread(Context *x, Py_ssize_t column, Py_ssize_t count)
{
    Py_ssize_t n = x->channels;
    for (Py_ssize_t k = 0; k < count; k++) {
        Py_ssize_t c = x->active[k];
        int magnitude = x->active_magnitude[k];
        add_row(x->below + column * n, weights_of(x, NORTH, c), magnitude, n);
        if (column + 1 < x->width) {
            add_row(x->row + (column + 1) * n, weights_of(x, WEST, c), magnitude, n);
            add_row(x->below + (column + 1) * n, weights_of(x, NORTH_WEST, c), magnitude, n);
        }
        if (column > 0)
            add_row(x->below + (column - 1) * n, weights_of(x, NORTH_EAST, c), magnitude, n);
    }
}

static void
next_row(Context *x)
{
    uint16_t *done = x->row;
    x->row = x->below;
    x->below = done;
    start_row(x, x->below);
}

/* Bytes written, or -1 once they are more than `limit`. */
static Py_ssize_t
encode(Context *x, const uint8_t *symbols, uint8_t *out, Py_ssize_t limit)
{
    Py_ssize_t plane = x->height * x->width, written = 0;
    uint64_t low = 0;
    uint32_t range = UINT32_MAX;

    for (Py_ssize_t position = 0; position < plane; position++) {
        Py_ssize_t column = position % x->width, count = 0;
        uint16_t *activity = x->row + column * x->channels;
        add_previous(x, position / x->width, column);
        for (Py_ssize_t c = 0; c < x->channels; c++) {
            unsigned symbol = symbols[c * plane + position];
            const uint16_t *table = table_of(x, activity[c]);
            range >>= PRECISION;
            low += (uint64_t)range * table[symbol];
            range *= (uint32_t)(table[symbol + 1] - table[symbol]);
            while (range < LEAST_RANGE) {
                if (written == limit)
                    return -1;
                if (low >> 32)
                    for (Py_ssize_t k = written; k-- > 0 && ++out[k] == 0;) {}
                out[written++] = (uint8_t)(low >> 24);
                low = (low << 8) & UINT32_MAX;
                range <<= 8;
            }
            if (x->magnitudes[symbol])
                count = note(x, column, c, x->magnitudes[symbol], count);
        }
        spread(x, column, count);
        if (column + 1 == x->width)
            next_row(x);
    }
    /* The fewest bytes that lie within the last interval if zeros follow. */
    for (int bytes = 0; bytes <= 4; bytes++) {
        uint64_t rest = ((uint64_t)1 << (32 - 8 * bytes)) - 1, end = (low + rest) & ~rest;
        if (end - low >= range)
            continue;
        if (written + bytes > limit)
            return -1;
        if (end >> 32)
            for (Py_ssize_t k = written; k-- > 0 && ++out[k] == 0;) {}
        for (int k = 0; k < bytes; k++)
            out[written++] = (uint8_t)(end >> (24 - 8 * k));
        break;
    }
    return written;
}

/* 0, or -1 if the data are none that `encode` makes. */
static int
decode(Context *x, const uint8_t *data, Py_ssize_t size, uint8_t *symbols)
{
    Py_ssize_t plane = x->height * x->width, next = 0;
    uint32_t range = UINT32_MAX, code = 0;

    for (; next < 4; next++)
        code = code << 8 | (next < size ? data[next] : 0);
    for (Py_ssize_t position = 0; position < plane; position++) {
        Py_ssize_t column = position % x->width, count = 0;
        uint16_t *activity = x->row + column * x->channels;
        add_previous(x, position / x->width, column);
        for (Py_ssize_t c = 0; c < x->channels; c++) {
            const uint16_t *table = table_of(x, activity[c]);
            unsigned symbol = 0;
            range >>= PRECISION;
            if (code >= range * table[1]) {
                uint32_t target = code / range;
                if (target >> PRECISION)
                    return -1;
                while (table[symbol + 1] <= target)
                    symbol++;
                code -= range * table[symbol];
            }
            range *= (uint32_t)(table[symbol + 1] - table[symbol]);
            while (range < LEAST_RANGE) {
                if (next == size + 4)
                    return -1;
                code = code << 8 | (next < size ? data[next] : 0);
                range <<= 8;
                next++;
            }
            symbols[c * plane + position] = (uint8_t)symbol;
            if (x->magnitudes[symbol])
                count = note(x, column, c, x->magnitudes[symbol], count);
        }
        spread(x, column, count);
        if (column + 1 == x->width)
            next_row(x);
    }
    return next < size ? -1 : 0;
}

/* Whether all symbols are below `levels`. */
static int
are_below(const uint8_t *symbols, Py_ssize_t n, Py_ssize_t levels)
{
    uint8_t largest = 0;
    for (Py_ssize_t k = 0; k < n; k++)
        largest = symbols[k] > largest ? symbols[k] : largest;
    return n == 0 || largest < levels;
}

/* Whether the buffers have the sizes of such a context and its tables are distributions. */
static int
check(const Context *x, const Py_buffer *weights, const Py_buffer *before, const Py_buffer *bias,
      const Py_buffer *magnitudes, const Py_buffer *cumulative, const Py_buffer *previous)
{
    Py_ssize_t n = x->channels;
    int fits = n >= 1 && n <= 65535 && x->height >= 1 && x->height <= 65536 && x->width >= 1 &&
               x->width <= 65536 && x->levels >= 1 && x->levels <= 256 &&
               weights->len == NEIGHBOURS * n * n && bias->len == 2 * n &&
               magnitudes->len == x->levels &&
               cumulative->len == 2 * CLASSES * (x->levels + 1) &&
               (previous->buf == NULL ||
                (previous->len == n * x->height * x->width && before->len == BEFORE * n));
    for (int k = 0; fits && k < CLASSES; k++) {
        const uint16_t *table = (const uint16_t *)cumulative->buf + k * (x->levels + 1);
        fits = table[0] == 0 && table[x->levels] == 1 << PRECISION;
        for (Py_ssize_t s = 0; fits && s < x->levels; s++)
            fits = table[s] < table[s + 1];
    }
    return fits && (previous->buf == NULL || are_below(previous->buf, previous->len, x->levels));
}

static int
allocate(Context *x)
{
    x->row = malloc(x->width * x->channels * sizeof *x->row);
    x->below = malloc(x->width * x->channels * sizeof *x->below);
    x->active = malloc(x->channels * sizeof *x->active);
    x->active_magnitude = malloc(x->channels);
    if (x->previous != NULL)
        x->seen = malloc(x->height * x->width * x->channels);
    if (!x->row || !x->below || !x->active || !x->active_magnitude ||
        (x->previous != NULL && !x->seen))
        return -1;
    Py_ssize_t plane = x->height * x->width;
    for (Py_ssize_t c = 0; x->seen != NULL && c < x->channels; c++)
        for (Py_ssize_t position = 0; position < plane; position++)
            x->seen[position * x->channels + c] = x->magnitudes[x->previous[c * plane + position]];
    start_row(x, x->row);
    start_row(x, x->below);
    return 0;
}

static PyObject *
run(PyObject *args, int encoding)
{
    Py_buffer input = {0}, previous = {0}, weights = {0}, before = {0}, bias = {0};
    Py_buffer magnitudes = {0}, cumulative = {0};
    Py_ssize_t limit;
    Context x = {0};
    PyObject *result = NULL;

    if (!PyArg_ParseTuple(args, "y*z*y*y*y*y*y*(nnn)n", &input, &previous, &weights, &before,
                          &bias, &magnitudes, &cumulative, &x.channels, &x.height, &x.width, &limit))
        return NULL;
    x.levels = magnitudes.len;
    x.weights = weights.buf;
    x.before = before.buf;
    x.bias = bias.buf;
    x.magnitudes = magnitudes.buf;
    x.cumulative = cumulative.buf;
    x.previous = previous.buf;
    if (!check(&x, &weights, &before, &bias, &magnitudes, &cumulative, &previous) || limit < 0) {
        PyErr_SetString(PyExc_ValueError, "the context model does not fit the tensor");
        goto done;
    }
    Py_ssize_t elements = x.channels * x.height * x.width, written = -1;
    const uint8_t *bytes = input.buf;
    if (encoding && (input.len != elements || !are_below(bytes, elements, x.levels))) {
        PyErr_SetString(PyExc_ValueError, "the symbols do not fit the context model");
        goto done;
    }
    if (allocate(&x) < 0) {
        PyErr_NoMemory();
        goto done;
    }
    result = PyBytes_FromStringAndSize(NULL, encoding ? limit : elements);
    if (result == NULL)
        goto done;
    uint8_t *out = (uint8_t *)PyBytes_AsString(result);
    Py_BEGIN_ALLOW_THREADS
    if (encoding)
        written = encode(&x, bytes, out, limit);
    else
        written = decode(&x, bytes, input.len, out);
    Py_END_ALLOW_THREADS
    if (written < 0) {
        Py_CLEAR(result);
        if (encoding)
            result = Py_NewRef(Py_None);
        else
            PyErr_SetString(PyExc_ValueError, "the data are damaged");
    }
    else if (encoding) {
        PyObject *whole = result;
        result = PyBytes_FromStringAndSize((const char *)out, written);
        Py_DECREF(whole);
    }
done:
    free(x.seen);
    free(x.row);
    free(x.below);
    free(x.active);
    free(x.active_magnitude);
    PyBuffer_Release(&input);
    PyBuffer_Release(&previous);
    PyBuffer_Release(&weights);
    PyBuffer_Release(&before);
    PyBuffer_Release(&bias);
    PyBuffer_Release(&magnitudes);
    PyBuffer_Release(&cumulative);
    return result;
}

static PyObject *
py_encode(PyObject *Py_UNUSED(module), PyObject *args)
{
    return run(args, 1);
}

static PyObject *
py_decode(PyObject *Py_UNUSED(module), PyObject *args)
{
    return run(args, 0);
}

static PyMethodDef methods[] = {
    {"encode", py_encode, METH_VARARGS,
     "encode(symbols, previous, weights, before, bias, magnitudes, cumulative, shape, limit)"},
    {"decode", py_decode, METH_VARARGS,
     "decode(data, previous, weights, before, bias, magnitudes, cumulative, shape, limit)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_context", NULL, 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__context(void)
{
    return PyModuleDef_Init(&definition);
}

/* The primitives of torch.cuda that a CPU build of torch lacks, over the same library; as C functions, because their cost is measured. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

int stub_get_device(void);
void stub_set_device(int);
int stub_capturing(void);
static unsigned long long streams[16];

static PyObject *get_device(PyObject *self, PyObject *unused) { return PyLong_FromLong(stub_get_device()); }
static PyObject *set_device(PyObject *self, PyObject *device) { stub_set_device((int)PyLong_AsLong(device)); Py_RETURN_NONE; }
static PyObject *raw_stream(PyObject *self, PyObject *device) {
  return PyLong_FromUnsignedLongLong(streams[PyLong_AsLong(device) & 15]);
}
static PyObject *set_stream(PyObject *self, PyObject *args) {
  int device;
  unsigned long long handle;
  if (!PyArg_ParseTuple(args, "iK", &device, &handle)) return NULL;
  streams[device & 15] = handle;
  Py_RETURN_NONE;
}
static PyObject *exchange(PyObject *self, PyObject *device) {
  int old = stub_get_device(), new = (int)PyLong_AsLong(device);
  if (new >= 0) stub_set_device(new);
  return PyLong_FromLong(old);
}
static PyObject *capturing(PyObject *self, PyObject *unused) { return PyBool_FromLong(stub_capturing()); }

static PyMethodDef methods[] = {
  {"get_device", get_device, METH_NOARGS, ""}, {"set_device", set_device, METH_O, ""},    {"raw_stream", raw_stream, METH_O, ""},
  {"set_stream", set_stream, METH_VARARGS, ""}, {"exchange", exchange, METH_O, ""}, {"capturing", capturing, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "stub_torch", 0, -1, methods};
PyMODINIT_FUNC PyInit_stub_torch(void) { return PyModule_Create(&module); }

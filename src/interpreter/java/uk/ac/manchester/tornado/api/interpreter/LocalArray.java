package uk.ac.manchester.tornado.api.interpreter;

/** An array in a group's local memory, the name of the variable it was first stored in. */
record LocalArray(Object array, int length, String name) {}

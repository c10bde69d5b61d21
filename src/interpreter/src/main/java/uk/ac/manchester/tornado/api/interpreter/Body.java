package uk.ac.manchester.tornado.api.interpreter;

import uk.ac.manchester.tornado.api.KernelContext;

/** A kernel and its arguments, for one work-item at a time. */
interface Body {
    void run(KernelContext context) throws Throwable;
}

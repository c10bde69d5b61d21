/** A layer's arrays and its kernels in order, as tasks of TornadoVM's. */
@NullMarked
package org.tornadomoe.tornado.graph;

import org.jspecify.annotations.NullMarked;
